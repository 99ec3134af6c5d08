"""The rule that stops a raced trial, by simulation: how often it is wrong, and how much it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.racing import (
    LEAST_DIFFERENT,
    LEAST_QUERIES,
    RacingSettings,
    Rival,
    as_rival,
    difference,
    drift,
    judge,
)

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

SHARES = (0.25, 0.5, 0.75, 1.0)


def ndcg_like(random: Generator, n: int) -> NDArray[np.float64]:
    """Differences of nDCG@10 with several relevant documents: small ones, many at zero, a few large."""
    moved = random.random(n) < 0.6
    return np.where(moved, random.standard_t(2.5, n) * 0.05, 0.0).clip(-1, 1)


def one_relevant(random: Generator, n: int) -> NDArray[np.float64]:
    """Differences of nDCG@10 with one relevant document, which moves by a few ranks for some queries."""
    gain = np.array([*(1 / np.log2(np.arange(10) + 2)), 0.0])
    rank = random.integers(0, 11, n)
    step = np.where(random.random(n) < 0.35, random.integers(-3, 4, n), 0)
    return gain[(rank + step).clip(0, 10)] - gain[rank]


def skewed(random: Generator, n: int) -> NDArray[np.float64]:
    """Most queries lose a little, some gain a lot: the worst for a t bound."""
    return np.where(random.random(n) < 0.15, random.uniform(0.1, 0.6, n), random.uniform(-0.1, 0.0, n))


def stopped(random: Generator, differences: list[NDArray[np.float64]], settings: RacingSettings) -> bool:
    """Whether a trial with these differences from one rival is stopped in any look at a shuffled order."""
    rows: list[NDArray[np.float32]] = []
    for values in differences:
        shuffled = random.permutation(values).astype(np.float32)
        table = np.full((len(settings.looks.shares) - 1, len(values)), np.nan, dtype=np.float32)
        for look, share in enumerate(settings.looks.shares[:-1]):
            seen = int(np.ceil(share * len(values)))
            table[look, :seen] = shuffled[:seen]
        rows.append(table)
    rival = Rival(0, 0.5, tuple(np.where(np.isnan(table), table, 0) for table in rows), np.zeros(len(rows[0])), 5)
    shares = [1.0, 3.0][: len(rows)]
    looks = range(len(settings.looks.shares) - 1)
    return any(judge([t[k] for t in rows], [rival], k, shares=shares, settings=settings) is not None for k in looks)


def settled_at(values: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """The same population moved to an exact mean, on the queries that differ at all."""
    different = values != 0
    return np.where(different, values + (mean - values.mean()) * len(values) / max(1, different.sum()), 0.0)


@pytest.mark.parametrize(
    ("draw", "sizes"),
    [(d, n) for d in (ndcg_like, one_relevant) for n in ((80,), (324,), (120, 60))] + [(skewed, (324,))],
)
def test_a_trial_that_would_win_by_a_hair_is_stopped_as_rarely_as_promised(draw, sizes) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    settings = RacingSettings(LookSettings(SHARES), alpha=0.05)
    wrong = sum(stopped(random, [settled_at(draw(random, n), 1e-9) for n in sizes], settings) for _ in range(400))
    assert wrong / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize("draw", [ndcg_like, one_relevant])
def test_a_trial_that_is_clearly_worse_is_mostly_stopped(draw) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(1)
    found = sum(stopped(random, [settled_at(draw(random, 324), -0.03)], RacingSettings()) for _ in range(60))
    assert found >= 45


def test_the_forecast_is_exact_when_everything_is_known_and_worth_its_error_before() -> None:
    random = np.random.default_rng(2)
    values = [ndcg_like(random, 200), one_relevant(random, 100) + 0.01]
    shares = [1.0, 3.0]
    truth = 0.25 * values[0].mean() + 0.75 * values[1].mean()
    whole = difference(values, [200, 100], shares)
    assert whole is not None
    assert (whole.mean, whole.cautious, whole.error) == (pytest.approx(truth), pytest.approx(truth), 0.0)
    assert whole.bound(0.001) == whole.cautious
    misses = []
    for _ in range(800):
        seen = [random.permutation(v)[: len(v) // 2] for v in values]
        half = difference(seen, [200, 100], shares)
        assert half is not None
        assert half.cautious > half.mean
        misses.append((half.mean - truth) / half.error)
    # A standard error is what its name says; the added query makes it a little larger.
    assert np.mean(misses) == pytest.approx(0, abs=0.15)
    assert 0.7 < np.std(misses) < 1.05


def test_nothing_is_decided_on_too_little() -> None:
    worse = np.full(LEAST_QUERIES, -0.1) + np.random.default_rng(3).normal(0, 1e-3, LEAST_QUERIES)
    assert difference([worse], [400], [1.0]) is not None
    assert difference([worse[1:]], [400], [1.0]) is None
    tied = np.concatenate([worse[: LEAST_DIFFERENT - 1], np.zeros(100)])
    assert difference([tied], [400], [1.0]) is None
    assert difference([worse, worse[:1]], [400, 50], [1.0, 1.0]) is None  # one query shows no spread
    assert difference([worse, worse[:1]], [400, 1], [1.0, 1.0]) is not None  # unless it is all there is


def test_the_estimate_is_the_rivals_value_and_the_mean_difference() -> None:
    random = np.random.default_rng(4)
    mine = np.full(100, np.nan, dtype=np.float32)
    mine[::2] = random.random(50)
    theirs = (mine + 0.3 + random.normal(0, 0.02, 100)).astype(np.float32)
    still = np.zeros(3)
    worse = Rival(1, 0.2, (np.stack([mine, mine, mine]) - 0.5,), still, 5)
    better = Rival(4, 0.7, (np.stack([theirs] * 3),), still, 5)
    verdict = judge([mine], [worse, better], 0, shares=[2.0], settings=RacingSettings(rivals=2))
    assert verdict is not None
    assert verdict.rival == 4
    assert verdict.estimate == pytest.approx(0.7 + float(np.nanmean(mine - theirs)), abs=1e-6)
    assert judge([mine], [worse], 0, shares=[2.0], settings=RacingSettings()) is None
    assert judge([mine], [], 0, shares=[2.0], settings=RacingSettings()) is None


def test_what_documents_of_later_looks_change_widens_the_bound() -> None:
    random = np.random.default_rng(5)
    mine = random.random(100).astype(np.float32)
    mine[50:] = np.nan
    theirs = (mine + 0.05 + random.normal(0, 0.02, 100)).astype(np.float32)
    looks = (np.stack([theirs] * 3),)

    def verdict(drift_of: float, others: int) -> bool:
        rival = Rival(0, 0.5, looks, np.array([drift_of, 0.0, 0.0]), others)
        return judge([mine], [rival], 0, shares=[1.0], settings=RacingSettings()) is not None

    assert verdict(0.0, 5)
    assert not verdict(0.0, 0), "nobody knows yet how much documents change"
    assert not verdict(0.03, 5)
    assert verdict(0.005, 50)
    assert not verdict(0.01, 2)
    assert verdict(0.01, 50), "the same drift weighs less when many say so"


def test_drift_is_what_differences_move_by_until_the_end() -> None:
    nan = np.nan
    looks = [np.array([[0.5, nan, nan, nan], [0.5, 0.25, nan, nan]], dtype=np.float32), np.zeros((2, 1), np.float32)]
    final = [np.array([0.25, 0.25, 1.0, 1.0]), np.array([0.5])]
    moved = drift(looks, final, [1.0, 3.0])
    assert moved.tolist() == [(-0.25 + 3 * 0.5) / 4, (-0.125 + 3 * 0.5) / 4]
    rival = as_rival(3, 0.7, tuple(looks), moved, [moved + 0.3, moved - [0.4, 0.0]])
    assert rival.drift == pytest.approx([(0.125) ** 0.5, 0.045**0.5])
    assert (rival.number, rival.value, rival.others) == (3, 0.7, 2)
    assert as_rival(3, 0.7, tuple(looks), moved, []).others == 0
