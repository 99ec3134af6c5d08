"""Batches as tensors: padded, unpadded as FlashAttention takes them, and the choice of attention."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.inputs import InputFormat, features, on_device
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.tokens import TokenizedTexts, make_plan
from mergesearch.resolving import load_study
from tests.tiny_models import make_tiny
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.tokens import TokenPlan

TEXTS = [f"{'search model ' * (i % 5)}query {i}" for i in range(40)]
LENGTHS = np.array([3, 7, 1, 7])

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_tokens() -> TokenPlan:
    ids = np.arange(1, 1 + LENGTHS.sum(), dtype=np.int32)
    return make_plan([TokenizedTexts(ids, LENGTHS)])


@pytest.mark.parametrize("left", [False, True])
def test_unpadded_is_padded_without_its_padding(left: bool) -> None:
    plan, texts = make_tokens(), np.array([1, 0, 3, 2])
    padded = features(plan, texts, InputFormat(pad_id=0, left=left))
    joined = features(plan, texts, InputFormat(pad_id=0, left=left, unpadded=True, first_position=2))
    mask = padded["attention_mask"].bool()
    assert joined["input_ids"].tolist() == [padded["input_ids"][mask].tolist()]
    assert joined["cu_seq_lens_q"].tolist() == [0, 7, 10, 17, 18]
    assert joined["cu_seq_lens_q"].dtype == joined["seq_idx"].dtype == torch.int32
    assert joined["position_ids"].tolist() == [[2 + i for n in LENGTHS[texts] for i in range(n)]]
    assert joined["seq_idx"].tolist() == [[row for row, n in enumerate(LENGTHS[texts]) for _ in range(n)]]
    assert (joined["max_length_q"], "attention_mask" in joined) == (7, False)


def text_by_text(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> tuple[Any, None]:
    """Attention over unpadded texts by its definition: each by itself."""
    assert mask is None
    bounds = given["cu_seq_lens_q"].tolist()
    grouped = query.shape[1] != key.shape[1]
    causal = bool(getattr(module, "is_causal", False))
    parts = [
        scaled_dot_product_attention(
            *(t[:, :, start:end] for t in (query, key, value)),
            is_causal=causal,
            scale=given.get("scaling"),
            enable_gqa=grouped,
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def unpad(encoder: Encoder, attention: str) -> None:
    module = encoder.model[0]
    module.model.set_attn_implementation(attention)
    if module.model_forward_params is not None:
        module.model_forward_params |= {"cu_seq_lens_q", "position_ids"}
    encoder._form = replace(encoder._form, unpadded=True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "mistral", "qwen3"])
def test_unpadded_texts_get_the_embeddings_of_padded_ones(kind: str, tmp_path: Path) -> None:
    """Positions, boundaries and pooling are right; what FlashAttention does in between is done here text by text."""
    AttentionInterface.register("text_by_text", text_by_text)
    encoder = open_encoder(make_tiny(kind, tmp_path / kind, n_layers=2))
    plan = encoder.plan(TEXTS, "document")
    expected = encoder.encode(plan)
    unpad(encoder, "text_by_text")
    torch.testing.assert_close(encoder.encode(plan), expected, atol=1e-5, rtol=1e-4)


def test_attention_is_sdpa_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    folder = make_tiny("bert", tmp_path / "bert", n_layers=2)
    automatic, sdpa, eager = (open_encoder(folder, attention=name) for name in ("auto", "sdpa", "eager"))
    assert [e.describe().attention for e in (automatic, sdpa, eager)] == ["sdpa", "sdpa", "eager"]
    embeddings = [e.encode(e.plan(TEXTS, "document")) for e in (automatic, sdpa, eager)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
    torch.testing.assert_close(embeddings[2], embeddings[0], atol=1e-5, rtol=1e-4)


def test_attention_that_is_not_to_be_had_says_what_it_lacks(tmp_path: Path) -> None:
    folder = make_tiny("bert", tmp_path / "bert", n_layers=2)
    with pytest.raises(EvaluationError, match=r"needs a CUDA device and `dtype: bfloat16` or `float16`"):
        open_encoder(folder, attention="flash_attention_2")
    with pytest.raises(EvaluationError, match="'fast' is not one of auto, sdpa, flash_attention_2, eager"):
        open_encoder(folder, attention="fast")


def test_attention_that_the_user_names_belongs_to_the_record(tmp_path: Path) -> None:
    tiny = make_study(tmp_path)
    recorded = load_study(tiny.file).score_relevant()
    assert load_study(tiny.change("evaluation", "attention", to="auto").file).score_relevant() == recorded
    eager = load_study(tiny.change("evaluation", "attention", to="eager").file)
    assert eager.score_relevant()["evaluation"] == {**recorded["evaluation"], "attention": "eager"}
    assert eager.evaluator_spec().evaluation.attention == "eager"


@pytest.mark.gpu
@cuda
def test_nobody_waits_for_a_gpu_while_batches_are_made_and_copied() -> None:
    plan, device = make_tokens(), torch.device("cuda")
    made = [features(plan, batch, InputFormat(pad_id=0)) for batch in plan.batches * 20]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = list(on_device(made, device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(made, there, strict=True):
        assert torch.equal(ours["input_ids"], theirs["input_ids"].cpu())


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_flash_attention_gives_the_embeddings_of_sdpa(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("flash_attn")
    folder = make_tiny(kind, tmp_path / kind, n_layers=2)
    flash, sdpa = (
        open_encoder(folder, dtype="bfloat16", device="cuda", attention=name)
        for name in ("flash_attention_2", "sdpa")
    )  # fmt: skip
    similarity = torch.cosine_similarity(*(e.encode(e.plan(TEXTS, "document")) for e in (flash, sdpa)))
    assert similarity.min() > 0.99


@pytest.mark.gpu
@cuda
def test_a_gpus_phases_are_timed(tmp_path: Path) -> None:
    tiny = make_study(tmp_path)
    collections = [WeightedCollection(c) for c in load_study(tiny.file).collections]
    result = RetrievalEvaluator(open_encoder(tmp_path / "retriever", device="cuda"), collections).evaluate()
    assert result.seconds.keys() == {"encode", "search", "score"}
    assert result.seconds["encode"] > 0
