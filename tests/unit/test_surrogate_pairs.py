"""Scores of predicted re-rankers are those of ranking by predicted logits, with the share a trial would take."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.fusion import SHARES
from mergesearch.evaluation.metrics import MEASURES
from mergesearch.evaluation.rerank_settings import Fusion
from mergesearch.surrogate import pairs as pairs_module
from mergesearch.surrogate.kriging import Kriging
from mergesearch.surrogate.objective import Objective
from mergesearch.surrogate.pairs import CollectionPairs, PairBank
from mergesearch.surrogate.screening import Screening, screen
from tests.pair_toys import ToyPairs

Array = NDArray[np.float64]

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.7, 0.9], [0.4, 0.3]])
CANDIDATES = np.random.default_rng(4).random((20, 2))


def bank_of(toys: list[ToyPairs], share: Fusion, points: Array = POINTS, weights: tuple[float, ...] = ()) -> PairBank:
    given_weights = weights or (1.0,) * len(toys)
    collections = [toy.bank(points, weight) for toy, weight in zip(toys, given_weights, strict=True)]
    return PairBank([f"m{i}" for i in range(len(points))], collections, share)


def predicted(toy: ToyPairs, weights: Array) -> list[torch.Tensor]:
    """Logits of predicted merges, as sums written out."""
    logits = [toy.logits(point).double() for point in POINTS]
    return [sum((w * x for w, x in zip(row, logits, strict=True)), torch.zeros(())).float() for row in weights]


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_scores_are_those_of_the_plain_computation(measure: str, share: float) -> None:
    toy = ToyPairs(bend=0.5)
    weights = np.random.default_rng(1).normal(size=(20, 5))
    for depth in (1, 5):
        metric = f"{measure}@{depth}"
        expected = [toy.measure(logits, share, metric) for logits in predicted(toy, weights)]
        np.testing.assert_allclose(bank_of([toy], share).per_query_scores(weights, metric), expected, atol=1e-12)


def test_scores_are_trec_evals() -> None:
    toy = ToyPairs()
    scores = bank_of([toy], 0.5).per_query_scores(np.eye(5), "ndcg@10")
    evaluator = pytrec_eval.RelevanceEvaluator(toy.qrels, {"ndcg_cut.10"})
    for point, row in zip(POINTS, scores, strict=True):
        # trec_eval reads fp32: scores that differ by less would be ties there.
        run = {q: {d: round(s, 4) for d, s in found.items()} for q, found in toy.run(toy.logits(point), 0.5).items()}
        found = evaluator.evaluate({q: r for q, r in run.items() if r})
        expected = [found[q]["ndcg_cut_10"] if q in found else 0.0 for q in toy.qrels]
        np.testing.assert_allclose(row, expected, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.3, "tuned"]), st.booleans())
def test_evaluated_merges_get_their_measured_scores(seed: int, share: Fusion, scored: bool) -> None:
    """Also where a steep head makes many equal: sigmoid has no number between those of 18 and 20."""
    toy = ToyPairs(seed=seed, scored=scored, activate=lambda logits: torch.sigmoid(20 * logits))
    found = bank_of([toy], share).per_query_scores(np.eye(5), "ndcg@5")
    for row, point in zip(found, POINTS, strict=True):
        shares = SHARES if share == "tuned" else (0.3,)
        measured = [toy.measure(toy.logits(point), tried, "ndcg@5") for tried in shares]
        np.testing.assert_array_equal(row, max(measured, key=lambda scores: scores.mean()))


def test_logits_that_are_linear_in_the_coefficients_are_predicted_as_they_are() -> None:
    toy = ToyPairs(n_queries=40)
    scores = bank_of([toy], 1.0).per_query_scores(Kriging(POINTS, 1.0).weights(CANDIDATES), "ndcg@10")
    true = np.array([toy.measure(toy.logits(point), 1.0) for point in CANDIDATES])
    assert (np.abs(scores - true) > 1e-9).mean() < 0.001  # fp32: pairs that are as good as equal may change places


def test_curved_logits_are_predicted_closely() -> None:
    toy = ToyPairs(n_queries=60, bend=0.5)
    points = np.random.default_rng(5).random((15, 2))
    bank = bank_of([toy], "tuned", points)
    found = bank.per_query_scores(Kriging(points, 1.0).weights(CANDIDATES), "ndcg@10").mean(axis=1)
    true = [max(toy.measure(toy.logits(point), share).mean() for share in SHARES) for point in CANDIDATES]
    assert np.corrcoef(found, true)[0, 1] > 0.99


@pytest.mark.parametrize("metric", ["map@5", "precision@2"])
def test_one_share_serves_all_collections_and_the_value_decides_it(metric: str) -> None:
    """Also a collection whose first stage gives no scores, which the share says nothing about; of equals, as a coarse
    metric has many, the smallest is taken."""
    toys = [ToyPairs(seed=1), ToyPairs(seed=2, n_queries=5), ToyPairs(seed=3, scored=False)]
    weights = np.random.default_rng(1).normal(size=(20, 5))
    bank = bank_of(toys, "tuned", weights=(1.0, 3.0, 1.0))
    assert bank.sizes == (12, 5, 12)
    scores = bank.per_query_scores(weights, metric)
    chosen = set()
    for i, row in enumerate(scores):
        tried = []
        for share in SHARES:
            parts = [toy.measure(predicted(toy, weights)[i], share, metric) for toy in toys]
            value = (parts[0].mean() + 3 * parts[1].mean() + parts[2].mean()) / 5
            tried.append((round(float(value), 9), -share, np.concatenate(parts)))
        _, negative, expected = max(tried, key=lambda t: t[:2])
        chosen.add(-negative)
        np.testing.assert_allclose(row, expected, atol=1e-12)
    assert len(chosen) > 3


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_of([ToyPairs(), ToyPairs(seed=1, n_candidates=4)], "tuned")
    weights = Kriging(POINTS, 1.0).weights(CANDIDATES)
    whole = bank.per_query_scores(weights, "ndcg@10")
    monkeypatch.setattr(pairs_module, "_BLOCK_ELEMENTS", 500)
    np.testing.assert_array_equal(bank.per_query_scores(weights, "ndcg@10"), whole)


@pytest.mark.parametrize("share", [0.6, "tuned"])
def test_a_screening_picks_the_best_point_there_is(share: Fusion) -> None:
    for seed in range(3):
        toy = ToyPairs(n_queries=40, seed=seed)
        bank = bank_of([toy], share)
        levels = tuple(np.linspace(0, 1, 6).tolist())
        request = Screening(
            keys=bank.keys,
            points=tuple(map(tuple, POINTS.tolist())),
            allowed=(levels, levels),
            objective=Objective("mean"),
            exploration=0.0,
            separation=0.0,
        )
        report = screen(request, bank, bank.per_query_scores(np.eye(5), "ndcg@10"))
        taken = set(request.points)
        values = {
            (x, y): max(
                toy.measure(toy.logits(np.array([x, y])), tried).mean()
                for tried in (SHARES if share == "tuned" else (share,))
            )
            for x in levels
            for y in levels
            if (x, y) not in taken
        }
        assert values[report.picks[0].point] == pytest.approx(max(values.values()), abs=1e-9)
        assert report.replay_error == 0


def test_distances_say_what_ranking_goes_by() -> None:
    """Neither what moves all candidates of a query alike nor the scale of a head has a say in them."""
    toy = ToyPairs(bend=0.5)
    logits = torch.stack([toy.logits(point) for point in POINTS])
    queries = torch.from_numpy(np.nonzero(toy.rows >= 0)[0])
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randn(5, toy.rows.shape[0], generator=generator)[:, queries]
    gram = PairBank("abcde", [toy.pairs(logits)], 1.0).gram()
    moved = PairBank("abcde", [toy.pairs(3 * (logits + shifts))], 1.0).gram()
    np.testing.assert_allclose(moved, gram, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gram.sum(axis=0), 0, atol=1e-6)
    # Merges far apart differ by about what the candidates of a query do; equal ones by nothing.
    assert 0.05 < gram.diagonal().mean() < 5
    same = PairBank("ab", [toy.pairs(logits[[0, 0]])], 1.0).gram()
    np.testing.assert_array_equal(same, np.zeros((2, 2)))


def test_what_does_not_belong_together_is_refused() -> None:
    toy = ToyPairs()
    pairs = toy.bank(POINTS)
    with pytest.raises(EvaluationError, match=r"4 merges are named.*\[5\]"):
        PairBank("abcd", [pairs], 1.0)
    with pytest.raises(EvaluationError, match=rf"must be \[n, {pairs.logits.shape[1]}\]"):
        toy.pairs(pairs.logits[:, 1:])
    with pytest.raises(EvaluationError, match="12 judged queries"):
        CollectionPairs(pairs.logits, pairs.rows[1:], pairs.places[1:], None, toy.judgements, torch.sigmoid)
    broken = pairs.logits.clone()
    broken[1, 1] = torch.inf
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        PairBank("abcde", [toy.pairs(broken)], 1.0)
