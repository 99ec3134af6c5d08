"""Embeddings that a trial keeps: of a large corpus every document that can matter, however the trial is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergesearch.evaluation import kept
from mergesearch.evaluation.kept import Keeper
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
    retrieval = TrialEvaluator(load_study(tiny.file).evaluator_spec()).retrieval
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
