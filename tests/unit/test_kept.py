"""Embeddings that a trial keeps: of a large corpus every document that can matter, however the trial is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.evaluation import kept
from mergesearch.evaluation.kept import Keeper, KeptCollection, KeptEmbeddings
from mergesearch.resolving import load_study
from mergesearch.workers.evaluator import TrialEvaluator
from tests.tiny_studies import make_beir, make_study


@pytest.mark.parametrize("most_whole", [5, 500])
@pytest.mark.parametrize("racing", [None, {"looks": 4}, {"looks": 3, "hits": 2}])
def test_what_is_ranked_high_and_what_is_judged_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, racing: object, most_whole: int
) -> None:
    monkeypatch.setattr(kept, "MOST_WHOLE", most_whole)
    tiny = make_study(tmp_path / "study").change("search", "racing", to=racing)
    make_beir(tiny.folder / "large", n_queries=20, n_documents=120, seed=4)
    tiny.change("evaluation", to={"metric": "ndcg@3", "collections": [{"name": "large", "folder": "large"}]})
    retrieval = TrialEvaluator(load_study(tiny.file).evaluator_spec()).pipeline
    keeper = Keeper(retrieval.collections)
    (scores,) = retrieval.evaluate(keep_runs=True, keeper=keeper).collections
    (found,) = keeper.result().collections
    (prepared,) = retrieval.collections
    assert (np.diff(found.rows) > 0).all()
    assert len(found.rows) == len(found.documents)
    assert (len(found.rows) == 120) is (most_whole == 500)
    ids = prepared.source.collection.doc_ids
    assert scores.run is not None
    wanted = {ids.index(doc) for run in scores.run.values() for doc, _ in run}
    wanted |= set((prepared.judgements.keys % prepared.judgements.n_documents).tolist())
    assert wanted <= set(found.rows.tolist())
    # And each with its own embedding.
    again = retrieval.embed(0, found.rows)
    np.testing.assert_allclose(found.documents.float().numpy(), again.numpy(), atol=2e-3)


def texts(decay: float, seed: int, n_queries: int = 30, n_documents: int = 90, size: int = 48) -> KeptCollection:
    """Of length 1; the k-th principal direction is `decay`^k as long as the first."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    lengths = decay ** torch.arange(size)
    drawn = torch.randn(n_queries + n_documents, size, generator=generator) * lengths @ turned
    drawn = torch.nn.functional.normalize(drawn, dim=1).half()
    return KeptCollection(drawn[:n_queries], np.arange(n_documents), drawn[n_queries:])


@settings(deadline=None, max_examples=40)
@given(decay=st.floats(0.7, 0.97), lost=st.sampled_from([0.002, 0.01, 0.05]), seed=st.integers(0, 9))
def test_projected_similarities_are_off_by_no_more_than_was_to_be_lost(decay: float, lost: float, seed: int) -> None:
    whole = texts(decay, seed)
    small = whole.projected(lost)
    expected = whole.queries.float() @ whole.documents.float().T
    rounding = 5e-4
    for queries, documents in ((small.queries, small.documents), small.whole()):
        off = (queries.float() @ documents.float().T - expected).abs().mean()
        assert float(off) <= lost + rounding
    if small.basis is None:
        assert small is whole
        return
    assert small.n_bytes <= (1 - kept.LEAST_SAVED) * whole.n_bytes
    torch.testing.assert_close(
        small.basis.float() @ small.basis.float().T, torch.eye(len(small.basis)), atol=2e-3, rtol=0
    )


def test_projecting_is_deterministic_and_survives_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KeptEmbeddings((texts(0.8, 1), texts(1.0, 2)))
    assert whole.compact() is whole  # kilobytes
    monkeypatch.setattr(kept, "LARGE", sum(c.n_bytes for c in whole.collections) - 1)
    small = whole.compact()
    assert [c.basis is None for c in small.collections] == [False, True]  # nothing to gain where all directions count
    assert small.to_bytes() == whole.compact().to_bytes()
    assert len(small.to_bytes()) < len(whole.to_bytes())
    again = KeptEmbeddings.from_bytes(small.to_bytes())
    assert again.to_bytes() == small.to_bytes() == again.compact().to_bytes()


def test_documents_that_are_filled_in_are_projected_alike() -> None:
    whole = texts(0.8, 3)
    small = whole.projected(0.002)
    odd = np.arange(len(whole.rows)) % 2 == 1
    part = KeptCollection(small.queries, small.rows[~odd], small.documents[torch.from_numpy(~odd)], small.basis)
    filled = part.filled(whole.rows[odd], whole.documents[torch.from_numpy(odd)])
    assert filled.rows.tolist() == whole.rows.tolist()
    torch.testing.assert_close(filled.documents, small.documents, atol=1e-3, rtol=0)
