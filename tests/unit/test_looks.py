"""Looks: what is looked at when, and that the last look is the whole evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.looks import LookSettings, needed_documents, order_queries, plan_looks
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.raced import RacedEvaluator
from mergesearch.evaluation.racing import RacingSettings, Rival
from tests.tiny_models import WORDS, make_tiny

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the extra `parity`")

SHARES = (0.25, 0.5, 0.75, 1.0)


def made(seed: int, n_queries: int, n_documents: int = 90) -> Collection:
    rng = np.random.default_rng(seed)
    doc_ids = [f"doc{i}" for i in rng.permutation(n_documents)]
    doc_texts = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in doc_ids]
    query_ids = [f"q{i}" for i in rng.permutation(n_queries)]
    query_texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in query_ids]
    qrels = {
        q: {doc_ids[d]: int(rng.integers(1, 3)) for d in rng.choice(n_documents, 3, replace=False)} for q in query_ids
    }
    return Collection(f"made{seed}", "dev", query_ids, query_texts, doc_ids, doc_texts, qrels)


def listed(seed: int, n_queries: int) -> Collection:
    whole = made(seed, n_queries)
    rng = np.random.default_rng(seed)
    lists = {q: sorted({*rng.choice(whole.doc_ids, 12).tolist(), *whole.qrels[q]}) for q in whole.query_ids}
    return replace(whole, candidates=lists)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return open_encoder(make_tiny("bert", tmp_path_factory.mktemp("model") / "bert", n_layers=2))


KINDS = {
    "pool": lambda: made(0, 40).with_pool(2, seed=1),
    "whole": lambda: made(1, 33),
    "listed": lambda: listed(2, 24),
    "few queries": lambda: made(3, 2),
}


@given(st.data())
def test_every_query_and_document_is_in_one_look(data: st.DataObject) -> None:
    n_documents, n_queries = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
    document = st.integers(0, n_documents - 1)
    needs = [np.array(sorted(data.draw(st.sets(document, max_size=5))), dtype=np.int64) for _ in range(n_queries)]
    cuts = data.draw(st.sets(st.floats(0.01, 0.99), max_size=5))
    shares = (*sorted(cuts), 1.0)
    order = np.array(data.draw(st.permutations(range(n_queries))), dtype=np.int64)
    plan = plan_looks(needs, np.arange(n_documents), order, shares)

    assert sorted(np.concatenate(plan.queries).tolist()) == list(range(n_queries))
    assert sorted(np.concatenate(plan.documents).tolist()) == list(range(n_documents))
    seen: set[int] = set()
    looked = 0
    for share, queries, documents in zip(shares[:-1], plan.queries, plan.documents, strict=False):
        looked += len(queries)
        assert share * n_queries - 1e-6 <= looked < share * n_queries + 1
        assert set(queries.tolist()) <= set(order[:looked].tolist())
        wanted = {int(d) for q in queries for d in needs[q]}
        assert set(documents.tolist()) == wanted - seen
        seen |= wanted
    for searched, approximate in zip(np.cumsum([len(d) for d in plan.documents]), plan.approximate, strict=True):
        assert approximate == (searched < n_documents)


def test_the_order_depends_on_ids_and_seed_alone() -> None:
    ids = [f"q{i}" for i in range(50)]
    shuffled = [ids[i] for i in order_queries(ids, 3)]
    backwards = ids[::-1]
    assert [backwards[i] for i in order_queries(backwards, 3)] == shuffled
    assert sorted(shuffled) == sorted(ids) != shuffled
    assert [ids[i] for i in order_queries(ids, 4)] != shuffled


def test_a_pool_is_what_its_queries_need() -> None:
    pool = made(0, 12).with_pool(3, seed=0)
    assert pool.pooled is not None
    for query, documents in pool.pooled.items():
        assert set(pool.qrels[query]) <= set(documents)
        assert len(documents) == len(set(documents)) <= len(pool.qrels[query]) + 3
    assert set().union(*pool.pooled.values()) == set(pool.doc_ids)
    for query, rows in zip(pool.query_ids, needed_documents(pool, pool.query_ids, 5, 0), strict=True):
        assert {pool.doc_ids[row] for row in rows} == set(pool.pooled[query])


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_look_is_the_evaluation_without_looks(encoder: Encoder, kind: str) -> None:
    weighted = [WeightedCollection(KINDS[kind](), 1.0), WeightedCollection(made(9, 21).with_pool(1, seed=0), 3.0)]
    plain = RetrievalEvaluator(encoder, weighted, depth=20, batch_tokens=256)
    raced = RacedEvaluator(encoder, weighted, racing=RacingSettings(), depth=20, batch_tokens=256, chunk_documents=16)
    expected, result = plain.evaluate(keep_runs=True), raced.evaluate(keep_runs=True)
    assert (result.tokens, result.stopped) == (expected.tokens, False)
    assert (raced.n_tokens, result.looks[-1].tokens) == (plain.n_tokens, plain.n_tokens)
    assert not result.looks[-1].approximate
    assert [look.tokens for look in result.looks] == sorted(look.tokens for look in result.looks)
    for mine, theirs in zip(result.collections, expected.collections, strict=True):
        assert mine.query_ids == theirs.query_ids
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-6)
        assert mine.run is not None
        assert theirs.run is not None
        for query in mine.query_ids:
            assert dict(mine.run[query]) == pytest.approx(dict(theirs.run[query]), abs=1e-5)
    assert result.value == pytest.approx(expected.value, abs=1e-7)
    assert result.looks[-1].mean == pytest.approx(result.value)
    # The base class goes through the same batches.
    again = RetrievalEvaluator.evaluate(raced)
    for mine, theirs in zip(result.collections, again.collections, strict=True):
        assert np.array_equal(mine.scores, theirs.scores)


@pytest.mark.parametrize("kind", ["pool", "whole", "listed"])
def test_a_look_scores_its_queries_over_the_documents_so_far(encoder: Encoder, kind: str) -> None:
    collection = KINDS[kind]()
    raced = RacedEvaluator(
        encoder, [WeightedCollection(collection)], racing=RacingSettings(LookSettings(SHARES, hits=4))
    )
    result = raced.evaluate()
    (scores,) = result.collections
    assert scores.looks is not None
    (looked,) = raced._looked()
    judged: list[int] = []
    there: list[int] = []
    for number in range(3):
        judged += looked.plan.queries[number].tolist()
        there += looked.plan.documents[number].tolist()
        smaller = _part(collection, judged, there)
        expected = RetrievalEvaluator(encoder, [WeightedCollection(smaller)]).evaluate(keep_runs=True)
        run = {q: dict(found) for q, found in (expected.collections[0].run or {}).items()}
        measured = pytrec_eval.RelevanceEvaluator(
            {q: collection.qrels[q] for q in smaller.query_ids}, {"ndcg_cut.10"}
        ).evaluate(run)
        row = scores.looks[number]
        assert np.flatnonzero(~np.isnan(row)).tolist() == sorted(judged)
        for position in judged:
            assert row[position] == pytest.approx(measured[collection.query_ids[position]]["ndcg_cut_10"], abs=1e-6)
        assert result.looks[number].mean == pytest.approx(float(np.nanmean(row)))
        assert result.looks[number].queries == len(judged)
        assert result.looks[number].approximate == (kind != "listed")


def _part(collection: Collection, queries: list[int], documents: list[int]) -> Collection:
    """Some queries on some documents; what is judged and not there is only dropped from the file."""
    kept = {collection.doc_ids[row] for row in documents}
    return collection.with_queries([collection.query_ids[i] for i in queries]).with_documents(kept)


def rivals(evaluator: RacedEvaluator, shift: float, value: float = 0.9) -> list[Rival]:
    """Six that scored `shift` more on every query, and a little else."""
    own = evaluator.evaluate().collections
    rng = np.random.default_rng(0)
    found = []
    for number in range(7, 13):
        looks: list[NDArray[np.float32]] = []
        for scores in own:
            assert scores.looks is not None
            looks.append((scores.looks + shift + rng.normal(0, 0.01, scores.looks.shape)).astype(np.float32))
        found.append(Rival(number, value, tuple(looks)))
    return found


def test_a_trial_that_cannot_win_is_stopped_and_its_documents_are_not_encoded(encoder: Encoder) -> None:
    weighted = [WeightedCollection(made(0, 60).with_pool(1, seed=0)), WeightedCollection(made(4, 44))]
    raced = RacedEvaluator(encoder, weighted, racing=RacingSettings())
    whole = raced.evaluate()
    batches: list[int] = []
    stopped = raced.evaluate(lambda done, _: batches.append(done), rivals=rivals(raced, 0.2))
    assert stopped.stopped
    assert stopped.stopped_by == 7
    assert stopped.estimate == pytest.approx(0.9 - 0.2, abs=0.01)
    (look,) = stopped.looks
    assert look == whole.looks[0]
    assert (stopped.tokens, stopped.value) == (look.tokens, pytest.approx(look.mean))
    assert [len(c.query_ids) for c in stopped.collections] == [15, 11]
    encoded = [
        b for looked in raced._looked() for b in looked.looks[0].queries.batches + looked.looks[0].documents.batches
    ]
    assert len(batches) == len(encoded) < raced.n_batches
    assert all(c.looks is None for c in stopped.collections)


def test_a_trial_that_may_win_goes_on(encoder: Encoder) -> None:
    raced = RacedEvaluator(encoder, [WeightedCollection(made(0, 60))], racing=RacingSettings())
    whole = raced.evaluate()
    for shift in (0.0, -0.2):
        result = raced.evaluate(rivals=rivals(raced, shift))
        assert not result.stopped
        assert np.array_equal(result.collections[0].scores, whole.collections[0].scores)
