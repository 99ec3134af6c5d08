"""Development data of a protocol: samples of train queries with their documents, and few queries of those."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergesearch.protocols.samples import sample, sampled_study
from mergesearch.resolving import load_study, resolve
from mergesearch.workers.evaluator_spec import CollectionSpec
from tests.tiny_studies import make_beir, make_study


@pytest.mark.parametrize("negatives", [0, pytest.param(30, marks=pytest.mark.slow)])
def test_a_thousand_train_queries_of_nfcorpus_with_their_documents(negatives: int, shared_data: Path) -> None:
    """CIKM'25's development data: every relevant document of every query, and BM25 negatives where they are wanted."""
    options = {"folder": str(shared_data / "nfcorpus")}
    whole = CollectionSpec("nfcorpus", "beir", options, "train", shared_data, seed=13)
    all_of_it = whole.load()
    dev = CollectionSpec("nfcorpus", "beir", options, "train", shared_data, 1000, negatives, seed=13).load()
    assert len(dev.query_ids) == 1000 < len(all_of_it.query_ids)
    assert {*dev.query_ids} < {*all_of_it.query_ids}
    assert dev.pooled is not None
    kept = {*dev.doc_ids}
    for query in dev.query_ids:
        assert dev.qrels[query] == all_of_it.qrels[query]
        relevant = {d for d, grade in dev.qrels[query].items() if grade > 0}
        assert relevant <= kept
        assert len({*dev.pooled[query]} - relevant) <= negatives
    assert kept == {d for documents in dev.pooled.values() for d in documents}
    hard = sum(len(dev.pooled[q]) - len(dev.qrels[q]) for q in dev.query_ids)
    assert hard > 0.9 * negatives * 1000 or not negatives


def test_few_queries_are_scored_on_the_pool_of_all(tmp_path: Path) -> None:
    make_beir(tmp_path / "made", n_queries=12)
    spec = CollectionSpec("made", "beir", {"folder": "made"}, "dev", tmp_path, 10, 1)
    every = spec.load()
    few = [CollectionSpec(**{**vars(spec), "subsample": (4, seed)}).load() for seed in (1, 1, 2)]
    assert few[0].query_ids == few[1].query_ids != few[2].query_ids
    for drawn in few:
        assert len(drawn.query_ids) == 4
        assert {*drawn.query_ids} <= {*every.query_ids}
        assert drawn.doc_texts == every.doc_texts
        assert drawn.qrels == {q: every.qrels[q] for q in drawn.query_ids}


def test_a_sampled_study_differs_in_nothing_else(tmp_path: Path) -> None:
    made = make_study(tmp_path / "study")
    study = load_study(made.file)
    few = sampled_study(study, 5, 2)
    assert few.score_relevant() == resolve(few.parsed).score_relevant()
    assert few.name == "tiny.5-queries.2"
    assert few.collections[0].query_ids == sample(study, 5, 2)["made"].query_ids
    assert few.collection_specs(test=True) == study.collection_specs(test=True)
    mine, theirs = few.score_relevant(), study.score_relevant()
    assert mine["evaluation"].pop("collections") != theirs["evaluation"].pop("collections")
    assert mine == theirs
    assert few.recipe_of(few.uniform_average()) == study.recipe_of(study.uniform_average())  # type: ignore[arg-type]
