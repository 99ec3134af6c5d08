"""Screening: what may be picked, what is reported, and that it finds optima in few evaluations."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError
from mergesearch.surrogate.bank import EmbeddingBank
from mergesearch.surrogate.candidates import Space
from mergesearch.surrogate.objective import OBJECTIVES, Objective
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening, screen
from tests.surrogate_toys import ToyMerges

Array = NDArray[np.float64]


def start(dimensions: int) -> Array:
    """The base and every expert alone."""
    return np.vstack([np.zeros(dimensions), np.eye(dimensions)])


def ask(toy: ToyMerges, points: Array, **changes: Any) -> ScreeningReport:
    keys = tuple(f"m{i}" for i in range(len(points)))
    options: dict[str, Any] = {
        "keys": keys,
        "points": tuple(map(tuple, points.tolist())),
        "references": keys[: toy.dimensions + 1],
        "n_candidates": 128,
        "objective": Objective("mean"),
    }
    request = Screening(**{**options, **changes})
    bank = EmbeddingBank(keys, [toy.bank(points)])
    return screen(pickle.loads(pickle.dumps(request)), bank, toy.measure(points, request.metric))


def test_few_evaluations_find_what_hundreds_of_random_ones_do_not() -> None:
    dimensions = 4
    for seed in range(3):
        toy = ToyMerges(dimensions=dimensions, n_queries=24, n_documents=120, seed=seed)
        points = start(dimensions)
        while len(points) < 15:
            picks = ask(toy, points, n_candidates=512, n_picks=2).picks
            points = np.vstack([points, [pick.point for pick in picks]])
        found = toy.measure(points).mean(axis=1).max()
        random = toy.measure(np.random.default_rng(seed).random((150, dimensions))).mean(axis=1)
        assert found > random.max()


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 100), st.integers(1, 6), st.sampled_from(OBJECTIVES))
def test_picks_are_new_different_and_allowed(seed: int, n_picks: int, objective: str) -> None:
    toy = ToyMerges(dimensions=3)
    points = start(3)
    allowed = (None, (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 1.0))
    pending = ((0.5, 0.5, 1.0), (0.9, 0.25, 0.0))
    report = ask(
        toy, points, n_picks=n_picks, allowed=allowed, pending=pending, seed=seed, objective=Objective(objective)
    )
    picked = [pick.point for pick in report.picks]
    assert len(set(picked)) == len(picked) == n_picks
    known = [*map(tuple, points), *pending, *picked]
    for i, point in enumerate(picked):
        assert 0 <= point[0] <= 1
        assert point[1] in allowed[1]
        assert point[2] in allowed[2]
        others = known[: len(known) - n_picks + i]
        assert min(np.abs(np.array(point) - other).max() for other in others) >= 0.01


def test_a_small_lattice_is_screened_whole_and_used_up() -> None:
    toy = ToyMerges(dimensions=2)
    allowed = ((0.0, 0.5, 1.0), (0.0, 1.0))
    report = ask(toy, start(2), allowed=allowed, n_picks=9)
    assert report.n_screened == 3
    assert sorted(pick.point for pick in report.picks) == [(0.5, 0.0), (0.5, 1.0), (1.0, 1.0)]
    lattice = np.array([(a, b) for a in allowed[0] for b in allowed[1]])
    done = ask(toy, lattice, allowed=allowed)
    assert done.picks == ()
    assert done.improvement == float("-inf")
    assert done.n_screened == 0


def test_a_report_is_a_function_of_the_request_and_plain_numbers() -> None:
    toy = ToyMerges(dimensions=2)
    points = np.vstack([start(2), [[0.4, 0.6], [0.8, 0.3], [0.2, 0.9]]])
    first, again, other = (ask(toy, points, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.picks != other.picks
    assert json.loads(json.dumps(dataclasses.asdict(first)))["noise"] == first.noise
    assert len(first.landscape.means) == len(first.landscape.positions[0]) * len(first.landscape.positions[1])
    assert len(first.left_out) == len(points)
    assert first.replay_error < 1e-9
    assert first.optimism >= 0


def test_calibration_tells_what_leaving_out_predicts() -> None:
    toy = ToyMerges(dimensions=2, n_queries=30, n_documents=150)
    points = np.random.default_rng(0).random((16, 2))
    report = ask(toy, points, references=())
    truth = toy.measure(points).mean(axis=1)
    np.testing.assert_allclose([row.measured for row in report.left_out], truth)
    off = np.array([row.predicted - row.measured for row in report.left_out])
    sd = np.array([row.sd for row in report.left_out])
    assert (off**2).sum() == pytest.approx((sd**2).sum())
    assert np.abs(off).mean() < truth.std() / 3
    best = max(report.picks, key=lambda pick: pick.objective)
    assert toy.measure(np.array([best.point])).mean() == pytest.approx(best.mean, abs=5 * max(best.sd, 1e-3))
    wild = ToyMerges(dimensions=2, n_queries=30, n_documents=150, bend=1.5)
    rows = ask(wild, points, references=()).left_out
    assert np.mean([row.embedding_error for row in rows]) > 2 * np.mean([r.embedding_error for r in report.left_out])


def test_exploration_goes_where_little_is_known() -> None:
    toy = ToyMerges(dimensions=2)
    points = np.vstack([start(2), np.random.default_rng(1).random((5, 2)) * 0.3])
    greedy, curious = (ask(toy, points, exploration=e) for e in (0.0, 1000.0))
    assert curious.picks[0].sd > greedy.picks[0].sd
    assert greedy.picks[0].acquisition == greedy.picks[0].objective
    together = ask(toy, points, exploration=1000.0, n_picks=2)
    # The second pick knows that the first is being evaluated.
    assert np.abs(np.subtract(together.picks[0].point, together.picks[1].point)).max() > 0.2
    alone = ask(toy, points, exploration=1000.0, pending=(together.picks[0].point,))
    assert alone.picks[0].sd < together.picks[0].sd


def test_the_landscape_shows_the_coordinates_that_matter() -> None:
    toy = ToyMerges(dimensions=3)
    for part in (toy._moves, toy._bends):
        for texts in part:
            texts[1] = 0.0
    toy._bends = [texts * 0 for texts in toy._bends]
    landscape = ask(toy, start(3)).landscape
    assert set(landscape.coordinates) == {0, 2}
    assert landscape.importance[1] < 1e-9
    line = ask(ToyMerges(dimensions=1), np.array([[0.0], [1.0]]), references=()).landscape
    assert line.coordinates == (0,)
    assert len(line.means) == len(line.positions[0])


def test_one_evaluated_merge_is_enough_to_go_on() -> None:
    report = ask(ToyMerges(dimensions=2), np.array([[0.5, 0.5]]), references=(), n_picks=3)
    assert len(report.picks) == 3
    assert np.isfinite([pick.acquisition for pick in report.picks]).all()


def test_a_reference_outside_of_the_space_is_one_like_any_other() -> None:
    toy, points = ToyMerges(dimensions=2), start(2)
    measured = toy.measure(points)
    bank = EmbeddingBank(("m0", "m1", "m2"), [toy.bank(points)])
    objective = Objective("lower_bound")
    request = Screening(bank.keys, tuple(map(tuple, points.tolist())), objective=objective, n_candidates=64)
    inside, elsewhere, without = (dataclasses.replace(request, references=r) for r in (("m1",), ("s",), ()))
    assert screen(elsewhere, bank, measured, {"s": measured[1]}) == screen(inside, bank, measured)
    assert screen(without, bank, measured, {"s": measured[1]}) != screen(inside, bank, measured)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ("a", "b", "c")}, "in their order"),
        ({"pending": ((0.1,),)}, "coordinates"),
        ({"allowed": (None,)}, "coordinates"),
        ({"references": ("nobody",)}, "nobody"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    toy, points = ToyMerges(dimensions=2), start(2)
    bank = EmbeddingBank(("m0", "m1", "m2"), [toy.bank(points)])
    request = Screening(("m0", "m1", "m2"), tuple(map(tuple, points.tolist())))
    with pytest.raises(EvaluationError, match=message):
        screen(dataclasses.replace(request, **changes), bank, toy.measure(points))
    with pytest.raises(EvaluationError, match="scores"):
        screen(request, bank, np.zeros((2, 2)))


def test_candidates_stay_in_the_cube_and_on_allowed_positions() -> None:
    space = Space((None, (0.0, 0.1, 1.0)))
    random = np.random.default_rng(0)
    for points in (space.spread(50, 2, random), space.around(np.array([[0.0, 0.1], [1.0, 1.0]]), 50, 0.2, random)):
        assert points.shape == (50, 2)
        assert ((points >= 0) & (points <= 1)).all()
        assert set(points[:, 1]) <= {0.0, 0.1, 1.0}
    assert space.lattice(100) is None
    assert Space(((0.0, 1.0), (0.5,))).lattice(2).tolist() == [[0.0, 0.5], [1.0, 0.5]]  # type: ignore[union-attr]
    assert Space(((0.0, 1.0), (0.5,))).lattice(1) is None
    kept = Space.fresh(np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.2], [0.1, 0.1]]), np.array([[0.2, 0.2]]))
    assert kept.tolist() == [[0.5, 0.5], [0.1, 0.1]]
