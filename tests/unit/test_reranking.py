"""From candidates to scores of fused rankings, against the same way gone step by step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.candidates import Candidates, find_candidates
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.fusion import SHARES
from mergesearch.evaluation.kept import KeptLogits
from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.pipeline import WeightedCollection
from mergesearch.evaluation.racing import LEAST_RIVALS, RacingSettings, Rival
from mergesearch.evaluation.rerank_settings import FirstStageSpec, RerankSettings
from mergesearch.evaluation.reranker import Reranker, open_reranker
from mergesearch.evaluation.reranking import RacedRerankEvaluator, RerankEvaluator
from tests.tiny_models import WORDS, tiny_reranker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mergesearch.evaluation.result import TrialResult

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the extra `parity`")

METRICS = {
    "ndcg@3": ("ndcg_cut.3", "ndcg_cut_3", "ndcg@3"),
    "ndcg@10": ("ndcg_cut.10", "ndcg_cut_10", "ndcg@10"),
    "precision@10": ("P.10", "P_10", "precision@10"),
    "map@100": ("map_cut.100", "map_cut_100", "map@100"),
    "mrr@10": (None, "", "mrr@10"),
    "recall@100": ("recall.100", "recall_100", "recall@100"),
}
"""By our name: trec_eval's measure, its key (none for a rank that it does not cut), and ranx's name."""


def make_collection(seed: int = 0, n_queries: int = 12, n_documents: int = 60, name: str = "made") -> Collection:
    rng = np.random.default_rng(seed)
    doc_ids = [f"doc{i}" for i in rng.permutation(n_documents)]
    doc_texts = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in doc_ids]
    doc_texts[5] = doc_texts[40]  # A pair that ties for every query.
    query_ids = [f"q{i}" for i in range(n_queries)]
    query_texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in query_ids]
    qrels = {
        q: {doc_ids[d]: int(rng.integers(1, 3)) for d in rng.choice(n_documents, 8, replace=False)} for q in query_ids
    }
    return Collection(name, "dev", query_ids, query_texts, doc_ids, doc_texts, qrels)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tiny_reranker("bert", tmp_path_factory.mktemp("model") / "bert", n_layers=2)
    opened = open_reranker(folder, RerankSettings())
    with torch.no_grad():  # random heads score all pairs nearly alike
        opened.parameters["classifier.weight"] *= 200
    return opened


@pytest.fixture(scope="module")
def collection() -> Collection:
    return make_collection()


def found(*collections: Collection, **spec: object) -> tuple[list[WeightedCollection], list[Candidates]]:
    return (
        [WeightedCollection(c, 1.0 + i) for i, c in enumerate(collections)],
        [find_candidates(FirstStageSpec(**spec), c) for c in collections],  # type: ignore[arg-type]
    )


def pair_by_pair(model: Reranker, collection: Collection, candidates: Candidates) -> dict[str, dict[str, float]]:
    """Every pair scored alone."""
    run: dict[str, dict[str, float]] = {}
    texts = dict(zip(collection.query_ids, collection.query_texts, strict=True))
    for query_id, rows in zip(collection.judged, candidates.rows, strict=True):
        run[query_id] = {}
        for row in rows[rows >= 0]:
            inputs = model.tokenizer(texts[query_id], collection.doc_texts[row], truncation=True, return_tensors="pt")
            with torch.inference_mode():
                logits = model.model(**inputs).logits
            run[query_id][collection.doc_ids[row]] = float(torch.sigmoid(logits)[0, 0])
    return run


def first_run(collection: Collection, candidates: Candidates) -> dict[str, dict[str, float]]:
    assert candidates.scores is not None
    return {
        q: {collection.doc_ids[r]: float(s) for r, s in zip(rows, scores, strict=True) if r >= 0}
        for q, rows, scores in zip(collection.judged, candidates.rows, candidates.scores, strict=True)
    }


def fused(first: Mapping[str, float], second: Mapping[str, float], share: float) -> dict[str, float]:
    """Min-max and weighted sum, written out."""

    def scaled(scores: Mapping[str, float]) -> dict[str, float]:
        low, high = min(scores.values()), max(scores.values())
        return {d: (s - low) / (high - low) if high - low > 1e-9 else 0.0 for d, s in scores.items()}

    one, two = scaled(first), scaled(second)
    return {d: (1 - share) * one[d] + share * two[d] for d in first}


def run_of(result: TrialResult, i: int = 0) -> dict[str, dict[str, float]]:
    run = result.collections[i].run
    assert run is not None
    return {q: dict(ranked) for q, ranked in run.items()}


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_scores_are_those_of_pytrec_eval_and_ranx_on_the_fused_run(
    reranker: Reranker, collection: Collection, metric: str
) -> None:
    import ranx

    weighted, candidates = found(collection, depth=30)
    evaluator = RerankEvaluator(reranker, weighted, candidates, metric=metric, fusion=0.7, depth=30)
    result = evaluator.evaluate(keep_runs=True)
    (scores,) = result.collections
    assert (scores.collection, scores.metric, scores.query_ids) == ("made", metric, tuple(collection.query_ids))
    assert result.fusion == 0.7
    run = run_of(result)
    own, first = pair_by_pair(reranker, collection, candidates[0]), first_run(collection, candidates[0])
    for query_id in collection.query_ids:
        expected = fused(first[query_id], own[query_id], 0.7)
        assert run[query_id] == pytest.approx(expected, abs=2e-5)
        ranked = sorted(run[query_id], key=lambda d: (run[query_id][d], d), reverse=True)
        assert list(run[query_id]) == ranked, "best first, ties by id as trec_eval has them"
    theirs, key, ranx_name = METRICS[metric]
    if theirs is not None:
        measured = pytrec_eval.RelevanceEvaluator(collection.qrels, {theirs}).evaluate(run)
        assert scores.scores.tolist() == pytest.approx([measured[q][key] for q in collection.query_ids], abs=1e-9)
    if len({s for q in run for s in run[q].values()}) == sum(map(len, run.values())):  # ranx leaves ties to chance
        by_ranx = ranx.evaluate(ranx.Qrels(collection.qrels), ranx.Run(run), ranx_name, return_mean=False)
        assert scores.scores.tolist() == pytest.approx(np.asarray(by_ranx).tolist(), abs=1e-9)


def test_a_tuned_share_is_the_best_of_all_for_the_whole_trial(reranker: Reranker) -> None:
    one, two = make_collection(3), make_collection(4, n_queries=7, name="other")
    weighted, candidates = found(one, two, depth=25)
    tuned = RerankEvaluator(reranker, weighted, candidates)
    result = tuned.evaluate()
    by_share = {share: tuned.evaluate(fusion=share) for share in SHARES}
    values = {share: r.value for share, r in by_share.items()}
    assert result.fusion == next(share for share in SHARES if values[share] == max(values.values()))
    assert result.value == max(values.values()) > min(values.values())
    for ours, best in zip(result.collections, by_share[result.fusion or 0.0].collections, strict=True):
        np.testing.assert_array_equal(ours.scores, best.scores)
    alone = [RerankEvaluator(reranker, weighted[i : i + 1], candidates[i : i + 1]).evaluate() for i in range(2)]
    assert sum(c.mean * (1 + i) for i, c in enumerate(r.collections[0] for r in alone)) / 3 >= result.value
    assert result.layer_tokens == 2 * tuned.n_tokens, "every pair once through two layers, whatever the fusion"


def test_of_equal_shares_the_smallest_is_taken(reranker: Reranker, collection: Collection) -> None:
    weighted, candidates = found(collection, depth=1)
    assert RerankEvaluator(reranker, weighted, candidates).evaluate().fusion == 0.0


def test_share_zero_is_the_first_stage_and_one_is_the_re_ranker(reranker: Reranker, collection: Collection) -> None:
    weighted, candidates = found(collection, depth=20)
    evaluator = RerankEvaluator(reranker, weighted, candidates, depth=20)
    first = evaluator.first_stage(keep_runs=True)
    assert (first.tokens, first.fusion, first.layer_tokens) == (0, 0.0, 0)
    zero, one = (evaluator.evaluate(keep_runs=True, fusion=share) for share in (0.0, 1.0))
    np.testing.assert_array_equal(first.collections[0].scores, zero.collections[0].scores)
    assert first.collections[0].run == zero.collections[0].run
    expected = first_run(collection, candidates[0])
    assert {q: list(ranked) for q, ranked in run_of(first).items()} == {
        q: list(ranked) for q, ranked in expected.items()
    }
    own = pair_by_pair(reranker, collection, candidates[0])
    for query_id, ranked in run_of(one).items():
        scores = [own[query_id][d] for d in ranked]
        assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


def test_lists_without_scores_are_the_re_rankers_to_order(reranker: Reranker, collection: Collection) -> None:
    lists = {q: collection.doc_ids[i : i + 9] for i, q in enumerate(collection.query_ids)}
    listed, ranked = replace(collection, candidates=lists, name="listed"), make_collection(8, name="ranked")
    weighted, candidates = found(listed, kind="candidates")
    alone = RerankEvaluator(reranker, weighted, candidates)
    result = alone.evaluate(keep_runs=True)
    assert result.fusion is None
    assert {q: set(found) for q, found in run_of(result).items()} == {q: set(d) for q, d in lists.items()}
    for share in (0.0, 0.5):
        np.testing.assert_array_equal(alone.evaluate(fusion=share).collections[0].scores, result.collections[0].scores)
    with pytest.raises(EvaluationError, match="'listed' come without scores"):
        alone.first_stage()
    others, further = found(ranked)
    both = RerankEvaluator(reranker, weighted + others, candidates + further).evaluate()
    assert both.fusion == RerankEvaluator(reranker, others, further).evaluate().fusion
    np.testing.assert_array_equal(both.collections[0].scores, result.collections[0].scores)


def test_queries_without_candidates_score_nothing(reranker: Reranker, collection: Collection) -> None:
    weighted, (whole,) = found(collection)
    rows, scores = whole.rows.copy(), whole.scores.copy()  # type: ignore[union-attr]
    rows[2], scores[2], rows[4, 1:], scores[4, 1:] = -1, 0, -1, 0
    evaluator = RerankEvaluator(reranker, weighted, [Candidates(rows, scores)], fusion=0.5)
    result, before = evaluator.evaluate(keep_runs=True), RerankEvaluator(reranker, weighted, [whole], fusion=0.5)
    assert result.collections[0].scores[2] == 0
    assert run_of(result)["q2"] == {}
    assert len(run_of(result)["q4"]) == 1
    others = [i for i in range(12) if i not in (2, 4)]
    np.testing.assert_array_equal(result.collections[0].scores[others], before.evaluate().collections[0].scores[others])


def test_counts_what_it_scores(reranker: Reranker, collection: Collection) -> None:
    weighted, candidates = found(collection, depth=15)
    evaluator = RerankEvaluator(reranker, weighted, candidates, batch_tokens=256)
    calls: list[tuple[int, int]] = []
    reranker.notes.append("of an earlier trial")
    result = evaluator.evaluate(lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, evaluator.n_batches) for i in range(evaluator.n_batches)]
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    queries = dict(zip(collection.query_ids, collection.query_texts, strict=True))
    first = first_run(collection, candidates[0])
    lengths = [
        len(reranker.tokenizer(queries[q], texts[d], truncation=True)["input_ids"]) for q in first for d in first[q]
    ]
    assert result.tokens == evaluator.n_tokens == sum(lengths)
    assert evaluator.n_pairs == len(lengths)
    assert evaluator.n_tokens <= evaluator.n_padded_tokens <= sum(lengths) / 0.95
    assert set(result.seconds) == {"encode", "search", "score"}
    assert result.notes == ()
    assert result.looks == ()
    assert result.collections[0].looks is None


def test_logits_are_kept_in_the_order_of_the_pairs(reranker: Reranker, collection: Collection) -> None:
    weighted, candidates = found(collection, make_collection(5, n_queries=3, name="other"), depth=10)
    evaluator = RerankEvaluator(reranker, weighted, candidates)
    keeper = evaluator.new_keeper()
    evaluator.evaluate(keeper=keeper)
    kept = KeptLogits.from_bytes(keeper.result().to_bytes())
    assert len(kept.logits) == 2
    for prepared, logits, c in zip(evaluator.collections, kept.logits, candidates, strict=True):
        assert logits.dtype == torch.float32
        assert logits.equal(reranker.logits(prepared.plan))
        table = prepared.table(torch.sigmoid(logits).numpy())
        own = pair_by_pair(reranker, prepared.source.collection, c)
        for query, query_id in enumerate(prepared.judgements.query_ids):
            for row, score in zip(c.rows[query], table[query], strict=True):
                doc_id = prepared.source.collection.doc_ids[row]
                assert score == pytest.approx(own[query_id][doc_id] if row >= 0 else 0.0, abs=1e-4)


def test_broken_logits_are_no_scores(reranker: Reranker, collection: Collection) -> None:
    weighted, candidates = found(collection)
    evaluator = RerankEvaluator(reranker, weighted, candidates)
    bias = reranker.parameters["classifier.bias"]
    for value in (math.nan, math.inf):
        with torch.no_grad():
            before = bias.clone()
            bias.fill_(value)
        with pytest.raises(
            EvaluationError, match=f"{evaluator.n_pairs} of {evaluator.n_pairs} pairs of collection 'made'"
        ):
            evaluator.evaluate()
        with torch.no_grad():
            bias.copy_(before)


def test_prompts_unknown_metrics_and_nothing_to_evaluate_are_refused(
    reranker: Reranker, collection: Collection
) -> None:
    weighted, candidates = found(collection)
    evaluator = RerankEvaluator(reranker, weighted, candidates)
    evaluator.use_prompts({})
    with pytest.raises(EvaluationError, match="takes no prompts"):
        evaluator.use_prompts({"made": {"query": "search: "}})
    with pytest.raises(EvaluationError, match="takes no prompts"):
        RerankEvaluator(reranker, [WeightedCollection(collection, query_prompt="search: ")], candidates)
    with pytest.raises(EvaluationError, match="Did you mean 'ndcg'"):
        RerankEvaluator(reranker, weighted, candidates, metric="ndgc@10")
    with pytest.raises(EvaluationError, match="no collection"):
        RerankEvaluator(reranker, [], [])


class TestRaced:
    racing = RacingSettings(LookSettings((0.25, 0.5, 1.0)), alpha=0.2)

    def evaluators(
        self, reranker: Reranker, collections: Sequence[Collection], **options: object
    ) -> tuple[RerankEvaluator, RacedRerankEvaluator]:
        weighted, candidates = found(*collections, depth=12)
        plain = RerankEvaluator(reranker, weighted, candidates, **options)  # type: ignore[arg-type]
        return plain, RacedRerankEvaluator(reranker, weighted, candidates, racing=self.racing, **options)

    @pytest.mark.parametrize("fusion", [0.4, "tuned"])
    def test_looks_end_where_the_whole_begins(self, reranker: Reranker, fusion: object) -> None:
        collections = [make_collection(1, 40), make_collection(2, 10, name="other")]
        plain, raced = self.evaluators(reranker, collections, fusion=fusion)
        expected, result = plain.evaluate(keep_runs=True), raced.evaluate(keep_runs=True)
        assert (raced.n_tokens, raced.n_pairs) == (plain.n_tokens, plain.n_pairs)
        assert (result.tokens, result.fusion, result.stopped) == (expected.tokens, expected.fusion, False)
        for ours, theirs in zip(result.collections, expected.collections, strict=True):
            assert ours.query_ids == theirs.query_ids
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
            assert ours.run is not None
            assert list(ours.run) == list(theirs.run or {})
        assert [look.queries for look in result.looks] == [10 + 3, 20 + 5, 50]
        assert [look.approximate for look in result.looks] == [False] * 3
        assert result.looks[-1].mean == pytest.approx(result.value)
        assert result.looks[-1].tokens == result.tokens
        for look in range(2):
            tables = [scores.looks[look] for scores in result.collections if scores.looks is not None]
            known = [~np.isnan(table) for table in tables]
            assert sum(int(k.sum()) for k in known) == result.looks[look].queries
            part = [
                c.with_queries([q for q, k in zip(c.query_ids, seen, strict=True) if k])
                for c, seen in zip(collections, known, strict=True)
            ]
            alone, _ = self.evaluators(reranker, part, fusion=fusion)
            same = alone.evaluate()
            assert same.value == pytest.approx(result.looks[look].mean, abs=1e-6)
            assert [s.scores.tolist() for s in same.collections] == [
                pytest.approx(table[k].tolist(), abs=1e-6) for table, k in zip(tables, known, strict=True)
            ], "a share is tuned on the queries so far"

    def test_what_cannot_win_is_stopped_and_pays_for_its_looks_only(self, reranker: Reranker) -> None:
        collection = make_collection(1, 120)
        _, raced = self.evaluators(reranker, [collection])
        complete = raced.evaluate()
        looks = complete.collections[0].looks
        assert looks is not None
        generator = np.random.default_rng(0)
        rivals = []
        for number in range(LEAST_RIVALS + 2):
            gain = 0.3 - 0.001 * number
            noise = generator.normal(0, 0.001, looks.shape).astype(np.float32)
            rivals.append(Rival(number, complete.value + gain, (looks + np.float32(gain) + noise,)))
        keeper = raced.new_keeper()
        stopped = raced.evaluate(keeper=keeper, rivals=rivals, keep_runs=True)
        assert (stopped.stopped, stopped.stopped_by, len(stopped.looks)) == (True, 0, 1)
        assert stopped.tokens == complete.looks[0].tokens < complete.tokens
        (scores,) = stopped.collections
        assert len(scores.query_ids) == len(scores.scores) == 30
        assert list(scores.run or {}) == list(scores.query_ids)
        assert scores.looks is None
        assert stopped.estimate == pytest.approx(complete.value, abs=0.02)
        (logits,) = keeper.result().logits
        assert 0 < int(torch.isnan(logits).sum()) < len(logits)
        weak = [replace(rival, value=rival.value - 1, looks=(rival.looks[0] - 1,)) for rival in rivals]
        assert not raced.evaluate(rivals=weak).stopped

    def test_the_first_stage_needs_no_looks(self, reranker: Reranker, collection: Collection) -> None:
        plain, raced = self.evaluators(reranker, [collection])
        ours, theirs = raced.first_stage(), plain.first_stage()
        np.testing.assert_allclose(ours.collections[0].scores, theirs.collections[0].scores, atol=1e-12)
        assert ours.layer_tokens == 0
