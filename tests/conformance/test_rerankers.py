"""What every family of re-rankers must do; adding one to the registry adds it here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mergesearch.evaluation.prefix import PrefixCache, open_reuse
from mergesearch.evaluation.rerank_settings import RerankSettings
from mergesearch.evaluation.reranker import Reranker, open_reranker
from mergesearch.evaluation.rerankers import FAMILIES
from mergesearch.sources.layout import lowest_layer, read_layout
from tests.tiny_models import tiny_reranker

if TYPE_CHECKING:
    from pathlib import Path

N_LAYERS = 4
QUERIES = ["what is a cell?", "protein search, and the health of the heart", "a"]
DOCUMENTS = ["the cell is a graph node.", "search model " * 12, "diet, effect of treatment with blood", "x"]
PAIRS = np.array([(q, d) for q in range(len(QUERIES)) for d in range(len(DOCUMENTS))])


@pytest.fixture(params=sorted(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    family = FAMILIES[name]
    kinds = {"seq2seq_lm": "t5", "causal_lm": "qwen3", "sequence_classification": "llama" if family.causal else "bert"}
    return tiny_reranker(kinds[str(family.head)], tmp_path / "model", n_layers=N_LAYERS)


def opened(folder: Path, name: str, **options: Any) -> Reranker:
    return open_reranker(folder, RerankSettings(family=name), **options)


def scores(reranker: Reranker, batch_tokens: int = 500) -> torch.Tensor:
    return reranker.logits(reranker.plan_pairs(QUERIES, DOCUMENTS, PAIRS, batch_tokens=batch_tokens))


def test_a_score_is_its_pairs_own(name: str, folder: Path) -> None:
    reranker = opened(folder, name)
    found = scores(reranker)
    assert (found.shape, found.dtype) == ((len(PAIRS),), torch.float32)
    for batch_tokens in (64, 5000):
        torch.testing.assert_close(scores(reranker, batch_tokens), found, atol=2e-5, rtol=1e-5)
    alone = reranker.logits(reranker.plan_pairs(QUERIES, DOCUMENTS, PAIRS[5:6]))
    torch.testing.assert_close(alone, found[5:6], atol=2e-5, rtol=1e-5)
    table = found.reshape(len(QUERIES), len(DOCUMENTS))
    assert all(len(row.unique()) == len(row) for row in (*table, *table.T))  # both texts have a say
    assert torch.equal(scores(opened(folder, name)), found)


def test_what_is_ranked_keeps_the_order(name: str, folder: Path) -> None:
    reranker = opened(folder, name)
    activated = reranker.activated(torch.linspace(-8, 8, 50))
    assert activated.dtype == torch.float32
    assert (activated.diff() > 0).all()


def test_half_precision_gives_scores_in_full(name: str, folder: Path) -> None:
    found, exact = scores(opened(folder, name, dtype="bfloat16")), scores(opened(folder, name))
    assert found.dtype == torch.float32
    assert len(found.unique()) == len(PAIRS)
    assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.9


def test_parameters_are_the_layouts_and_alive(name: str, folder: Path) -> None:
    reranker = opened(folder, name)
    layout = read_layout(folder, head=FAMILIES[name].head)
    assert list(reranker.parameters) == list(layout.parameters)
    before = scores(reranker)
    for place in layout.places:
        if place == "pooler" and FAMILIES[name].head == "causal_lm":
            continue
        changed = [reranker.parameters[n] for n in layout.names(place)]
        kept = [p.detach().clone() for p in changed]
        for p in changed:
            p.detach().add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        assert not torch.equal(scores(reranker), before), place
        for p, old in zip(changed, kept, strict=True):
            p.detach().copy_(old)
    assert torch.equal(scores(reranker), before)


def test_prefix_reuse_changes_no_bit(name: str, folder: Path) -> None:
    reranker = opened(folder, name)
    layout = read_layout(folder, head=FAMILIES[name].head)
    lowest = {n: lowest_layer(p.place) for n, p in layout.parameters.items()}
    reuse = open_reuse(reranker, (1, 3), PrefixCache(reranker.device, 1 << 30), lowest)
    assert reuse is not None
    plan = reranker.plan_pairs(QUERIES, DOCUMENTS, PAIRS, batch_tokens=500)
    expected = reranker.logits(plan)
    reranker.reuse = reuse
    for layers in (N_LAYERS, 1):
        reranker.layer_tokens = 0
        with reuse.trial(str):
            assert torch.equal(reranker.logits(plan), expected)
        assert reranker.layer_tokens == layers * plan.n_tokens


def test_memory_that_runs_out_splits_batches(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = opened(folder, name)
    expected, call = scores(reranker, 5000), Reranker.call

    def limited(self: Reranker, inputs: dict[str, Any]) -> torch.Tensor:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(self, inputs)

    monkeypatch.setattr(Reranker, "call", limited)
    torch.testing.assert_close(scores(reranker, 5000), expected, atol=2e-5, rtol=1e-5)
    assert reranker.out_of_memory > 0
    assert any(note.startswith("memory ran out over a batch") for note in reranker.notes)
