"""The rule that stops a raced trial, by simulation: how often it is wrong, and how much it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.racing import LEAST_QUERIES, LEAST_RIVALS, RacingSettings, Rival, forecast, judge

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

SHARES = (0.25, 0.5, 0.75, 1.0)


class Family:
    """Merges of the same sources: scores per query have a common part, one by the coefficients, and one of their own.

    Parts of their own are heavy-tailed and zero for most queries, as differences of nDCG are. What later documents
    change has all three parts too.
    """

    def __init__(self, random: Generator, sizes: tuple[int, ...], own: float, drift: float) -> None:
        self.random, self.sizes, self.own, self.drift = random, sizes, own, drift
        self.common = [random.random(n) * 0.8 + 0.1 for n in sizes]
        self.directions = [random.standard_t(3, (n, 3)) * 0.03 for n in sizes]
        self.later = [random.standard_t(3, (n, 3)) * 0.03 * drift for n in sizes]
        self.orders = [random.permutation(n) for n in sizes]

    def draw(self) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float32]]]:
        """Final scores and scores after each look, per collection."""
        z = self.random.normal(0, 1, 3)
        final, looks = [], []
        for i, n in enumerate(self.sizes):
            scores = self.common[i] + self.directions[i] @ z + self._alone(n)
            table = np.full((len(SHARES) - 1, n), np.nan)
            for k, share in enumerate(SHARES[:-1]):
                seen = self.orders[i][: int(np.ceil(share * n))]
                more = 0.1 + self.later[i] @ z + self.drift * self._alone(n)
                table[k, seen] = (scores + (1 - share) * more)[seen]
            final.append(scores)
            looks.append(table.astype(np.float32))
        return final, looks

    def _alone(self, n: int) -> NDArray[np.float64]:
        return np.where(self.random.random(n) < 0.4, self.random.standard_t(2.5, n) * self.own, 0.0)


def value(final: list[NDArray[np.float64]]) -> float:
    return float(np.average([f.mean() for f in final], weights=[1.0, 3.0][: len(final)]))


def race(
    random: Generator, sizes: tuple[int, ...], own: float, drift: float, low: float, high: float, alpha: float
) -> bool:
    """Whether a trial whose value lies between `low` and `high` above the best of 8 is stopped."""
    family = Family(random, sizes, own, drift)
    others = [family.draw() for _ in range(8)]
    others.sort(key=lambda drawn: -value(drawn[0]))
    rivals = [Rival(i, value(final), tuple(looks)) for i, (final, looks) in enumerate(others)]
    for _ in range(400):
        final, looks = family.draw()
        if low <= value(final) - rivals[0].value <= high:
            break
    else:
        return race(random, sizes, own, drift, low, high, alpha)
    settings = RacingSettings(LookSettings(SHARES), alpha=alpha)
    shares = [1.0, 3.0][: len(sizes)]
    return any(
        judge([t[k] for t in looks], rivals, k, shares=shares, settings=settings) is not None
        for k in range(len(SHARES) - 1)
    )


@pytest.mark.parametrize("drift", [0.0, 1.0])
@pytest.mark.parametrize("own", [0.01, 0.06])
@pytest.mark.parametrize("sizes", [(80,), (324,), (120, 60)])
def test_a_trial_that_would_win_is_stopped_as_rarely_as_promised(
    sizes: tuple[int, ...], own: float, drift: float
) -> None:
    random = np.random.default_rng(0)
    times = 150
    wrong = sum(race(random, sizes, own, drift, 0.0, 0.01, alpha=0.05) for _ in range(times))
    assert wrong / times <= 0.05 + 2 * (0.05 * 0.95 / times) ** 0.5


@pytest.mark.parametrize(("own", "least"), [(0.01, 0.8), (0.06, 0.3)])
def test_a_trial_that_is_clearly_worse_is_often_stopped(own: float, least: float) -> None:
    random = np.random.default_rng(1)
    assert sum(race(random, (324,), own, 0.3, -0.03, -0.02, alpha=0.01) for _ in range(50)) >= 50 * least


def test_a_combination_of_rivals_is_forecast_as_what_it_will_be_worth() -> None:
    """Whatever the queries and documents of later looks change: rivals have seen it."""
    random = np.random.default_rng(2)
    rows = random.random((6, 100)).astype(np.float32)
    values = sorted(random.random(6).tolist(), reverse=True)
    shares = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.1])
    mine = (shares @ rows).astype(np.float32)
    mine[60:] = np.nan
    found = forecast([mine], [[row] for row in rows], values, [1.0])
    assert found is not None
    truth = float(shares @ values) - values[0]
    paired = float((mine - rows[0])[:60].mean())
    assert found.difference == pytest.approx(truth, abs=0.05)
    assert abs(found.difference - truth) < abs(paired - truth) / 3


def test_rivals_that_are_all_the_same_leave_the_mean_paired_difference() -> None:
    random = np.random.default_rng(3)
    first, second = random.random(40).astype(np.float32), random.random(30).astype(np.float32)
    mine = [first - 0.25, second - 0.5]
    mine[0][10:] = np.nan
    rivals = [[first, second]] * 4
    found = forecast(mine, rivals, [0.7] * 4, [1.0, 3.0])
    assert found is not None
    assert found.difference == pytest.approx(-(0.25 + 3 * 0.5) / 4)
    assert (found.error, found.degrees) == (pytest.approx(0.0, abs=1e-7), 4)
    tables = tuple(np.stack([scores] * 3) for scores in (first, second))
    best = Rival(9, 0.7, tables)
    verdict = judge(
        mine, [best, *[Rival(i, 0.7, tables) for i in range(3)]], 0, shares=[1, 3], settings=RacingSettings()
    )
    assert verdict is not None
    assert verdict.rival == 9
    assert verdict.estimate == pytest.approx(0.7 - (0.25 + 3 * 0.5) / 4)


def test_nothing_is_decided_on_too_little() -> None:
    random = np.random.default_rng(4)
    rows = random.random((LEAST_RIVALS, 50)).astype(np.float32)
    values = [0.9] * LEAST_RIVALS

    def known(queries: int, rivals: int = LEAST_RIVALS) -> bool:
        mine = rows[0] - np.float32(0.5)
        mine[queries:] = np.nan
        return forecast([mine], [[row] for row in rows[:rivals]], values[:rivals], [1.0]) is not None

    assert known(LEAST_QUERIES)
    assert not known(LEAST_QUERIES - 1)
    assert not known(LEAST_QUERIES, LEAST_RIVALS - 1)
    one = np.array([0.5] + [np.nan] * 9, dtype=np.float32)
    both = [[row, np.full(10, 0.5, dtype=np.float32)] for row in rows]
    assert forecast([rows[1], one], both, values, [1.0, 1.0]) is None, "one query shows no spread"
    assert forecast([rows[1], one[:1]], [[a, b[:1]] for a, b in both], values, [1.0, 1.0]) is not None, "it is all"


def test_a_rival_that_others_do_not_foretell_makes_careful() -> None:
    """What forecasts of rivals were off by counts, however well the residuals look."""
    random = np.random.default_rng(5)
    base = random.random(100)
    rows = (base + random.normal(0, 0.001, (8, 100))).astype(np.float32)
    mine = rows[0] - np.float32(0.02)
    mine[50:] = np.nan
    steady = forecast([mine], [[row] for row in rows], [0.7] * 8, [1.0])
    wild = forecast([mine], [[row] for row in rows], [0.7, 0.68, 0.66, 0.64, 0.62, 0.6, 0.58, 0.56], [1.0])
    assert steady is not None
    assert wild is not None
    assert steady.bound(0.01) < 0 < wild.bound(0.01)
    assert wild.error > 0.02
