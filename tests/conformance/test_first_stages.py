"""What every first stage must do; adding one to the registry adds it here, with a line in `options`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from mergesearch.errors import CollectionError
from mergesearch.evaluation.candidates import Candidates, find_candidates, first_stage_identity
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.first_stages import FIRST_STAGES, FirstStage
from mergesearch.evaluation.rerank_settings import FirstStageSpec
from mergesearch.evaluation_schema import FirstStageEntry
from tests.tiny_models import WORDS, make_tiny

if TYPE_CHECKING:
    from pathlib import Path

N_DOCUMENTS = 60


@pytest.fixture(params=sorted(FIRST_STAGES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))


def made(kind: str, *, listed: bool = False, exclude_same_id: bool = True) -> Collection:
    """Documents with repeated texts, so that they tie, and one whose id is a query's."""
    rng = np.random.default_rng(7)
    doc_ids = [f"d{i}" for i in rng.permutation(N_DOCUMENTS)]
    doc_ids[3] = "q1"
    texts = [" ".join(rng.choice(WORDS, 8)) for _ in doc_ids]
    texts[10:16] = texts[20:26]
    query_ids = [f"q{i}" for i in range(5)]
    queries = [" ".join(rng.choice(WORDS, 4)) for _ in query_ids]
    queries[1] = texts[3]
    qrels = {q: {doc_ids[int(rng.integers(N_DOCUMENTS))]: 1} for q in query_ids}
    lists = {q: [doc_ids[i] for i in rng.choice(N_DOCUMENTS, 12, replace=False)] for q in query_ids}
    lists["q1"].append("q1") if "q1" not in lists["q1"] else None
    return Collection(
        "made",
        "dev",
        query_ids,
        queries,
        doc_ids,
        texts,
        qrels,
        candidates=lists if listed or kind == "candidates" else None,
        exclude_same_id=exclude_same_id,
    )


def options(kind: str, folder: Path, collection: Collection) -> dict[str, Any]:
    """Options with which a kind works on the collection; what it reads is put into the folder."""
    if kind == "run":
        rng = np.random.default_rng(3)
        path = folder / "runs" / f"{collection.name}.{collection.split}.trec"
        path.parent.mkdir(exist_ok=True)
        lines = [
            f"{q} Q0 {d} 1 {rng.integers(9)} tag"
            for q in sorted(collection.query_ids)
            for d in sorted(collection.doc_ids)
        ]
        path.write_text("\n".join(lines))
        return {"file": "runs/{collection}.{split}.trec"}
    if kind == "model":
        if not (folder / "model").is_dir():
            make_tiny("bert", folder / "model", n_layers=1)
        return {"model": "./model"}
    return {}


def spec(kind: str, folder: Path, collection: Collection, depth: int = 20) -> FirstStageSpec:
    return FirstStageSpec(kind, options(kind, folder, collection), depth, folder)


def lists(found: Candidates, collection: Collection) -> dict[str, list[tuple[str, float]]]:
    """By query id the candidates' ids and scores, checked for what holds whatever the kind."""
    scores = np.zeros(found.rows.shape) if found.scores is None else found.scores
    assert found.rows.dtype == np.int64
    assert scores.dtype == np.float64
    assert found.rows.shape == scores.shape == (len(collection.judged), found.rows.shape[1])
    given = {}
    for query_id, rows, values in zip(collection.judged, found.rows, scores, strict=True):
        n = int((rows >= 0).sum())
        assert (rows[:n] >= 0).all(), "absent ones come last"
        assert not values[n:].any()
        assert len(set(rows[:n])) == n
        given[query_id] = [(collection.doc_ids[row], float(v)) for row, v in zip(rows[:n], values[:n], strict=True)]
    return given


@pytest.mark.parametrize("listed", [False, True])
def test_best_first_with_ties_by_id_and_never_more_than_asked_for(kind: str, listed: bool, tmp_path: Path) -> None:
    collection = made(kind, listed=listed)
    for depth in (13, 20):
        found = lists(find_candidates(spec(kind, tmp_path, collection, depth), collection), collection)
        assert any(found.values())
        for ranked in found.values():
            assert len(ranked) <= depth
            assert ranked == sorted(ranked, key=lambda entry: (entry[1], entry[0]), reverse=True)


def test_less_depth_is_the_upper_part_of_more(kind: str, tmp_path: Path) -> None:
    collection = made(kind)
    if kind == "candidates":
        pytest.skip("whole lists or none")
    many = find_candidates(spec(kind, tmp_path, collection, 20), collection)
    few = find_candidates(spec(kind, tmp_path, collection, 5), collection)
    assert few.rows.tolist() == many.rows[:, :5].tolist()


def test_candidate_lists_bound_what_is_found(kind: str, tmp_path: Path) -> None:
    collection = made(kind, listed=True)
    found = lists(find_candidates(spec(kind, tmp_path, collection), collection), collection)
    assert collection.candidates is not None
    for query_id, ranked in found.items():
        assert {d for d, _ in ranked} == set(collection.candidates[query_id]) - {query_id}


def test_a_document_with_the_querys_id_is_barred_unless_it_is_not(kind: str, tmp_path: Path) -> None:
    for excluded in (True, False):
        collection = made(kind, exclude_same_id=excluded)
        found = lists(find_candidates(spec(kind, tmp_path, collection, N_DOCUMENTS), collection), collection)
        assert ("q1" in [d for d, _ in found["q1"]]) is not excluded


def test_what_equal_content_finds_does_not_depend_on_its_order(kind: str, tmp_path: Path) -> None:
    collection = made(kind)
    order, queries = np.random.default_rng(0).permutation(N_DOCUMENTS), [3, 1, 4, 0, 2]
    other = replace(
        collection,
        doc_ids=[collection.doc_ids[i] for i in order],
        doc_texts=[collection.doc_texts[i] for i in order],
        query_ids=[collection.query_ids[i] for i in queries],
        query_texts=[collection.query_texts[i] for i in queries],
    )
    expected = lists(find_candidates(spec(kind, tmp_path, collection), collection), collection)
    shared = lists(find_candidates(spec(kind, tmp_path, other), other), other)
    stage = FIRST_STAGES[kind](**options(kind, tmp_path, other))
    worked_out = lists(stage.rank(other, 20, relative_to=tmp_path, device="cpu"), other)
    assert shared == expected
    for query_id, ranked in worked_out.items():
        assert [d for d, _ in ranked] == [d for d, _ in expected[query_id]]
        assert [s for _, s in ranked] == pytest.approx([s for _, s in expected[query_id]], abs=1e-6)


def test_identity_is_plain_names_no_path_and_holds_the_options(kind: str, tmp_path: Path) -> None:
    collection = made(kind)
    identity = first_stage_identity(spec(kind, tmp_path, collection), collection)
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["kind"], identity["depth"]) == (kind, 20)
    assert str(tmp_path) not in json.dumps(identity)
    assert first_stage_identity(spec(kind, tmp_path, collection, 5), collection) != identity


def test_options_are_a_closed_documented_model(kind: str) -> None:
    stage = FIRST_STAGES[kind]
    assert issubclass(stage, FirstStage)
    assert stage.title
    with pytest.raises(ValidationError):
        stage(no_such_option=1)
    assert [field for field, info in stage.model_fields.items() if not info.description] == []
    # The study file keeps a kind's options beside its own keys, so none may carry the same name.
    assert not stage.model_fields.keys() & FirstStageEntry.model_fields.keys()


def test_unknown_kinds_and_options_are_named() -> None:
    collection = made("bm25")
    with pytest.raises(CollectionError, match="Did you mean 'bm25'"):
        find_candidates(FirstStageSpec("bm52"), collection)
    with pytest.raises(CollectionError, match="Did you mean 'method'") as caught:
        find_candidates(FirstStageSpec("bm25", {"methd": "atire", "b": 2}), collection)
    assert len(caught.value.problems) == 2
