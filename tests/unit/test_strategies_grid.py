"""The grid finishes exactly, whatever happens in between."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from mergesearch.errors import StudyFileError
from mergesearch.merging.registry import METHODS
from mergesearch.search.dimension import Dimension
from mergesearch.search.space import build_space
from mergesearch.search.strategies.grid import Grid, GridOptions
from tests.search_toys import SPACES, drive, make_space, make_trial, quadratic

FEW = SPACES["few"]


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(), retries=st.integers(0, 2), workers=st.integers(1, 4), order=st.sampled_from(["prefix", "shuffled"])
)
def test_every_point_is_scored_once_or_failed_as_often_as_allowed(
    data: st.DataObject, retries: int, workers: int, order: str
) -> None:
    options = GridOptions.model_validate({"retries": retries, "order": order})
    trials: list[FrozenTrial] = [make_trial(0, FEW, {}, value=0.1), make_trial(1, FEW, {"x": 0.5, "y": 3.0}, value=0.2)]
    flying: list[int] = []
    while True:
        grid = Grid(FEW, options, seed=0)  # each time anew, as after a kill
        proposal = None if len(flying) >= workers else grid.propose(trials, len(trials))
        if proposal is not None:
            flying.append(len(trials))
            trials.append(make_trial(len(trials), FEW, proposal.params, TrialState.RUNNING))
        elif flying:
            number = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            failed = data.draw(st.booleans())
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            trials[number] = make_trial(number, FEW, trials[number].params, state, None if failed else 0.3)
        else:
            break
    assert Grid(FEW, options, seed=0).exhausted(trials)
    scored = Counter(FEW.find(t.params) for t in trials if t.params and t.state == TrialState.COMPLETE)
    failed_points = Counter(FEW.find(t.params) for t in trials if t.state == TrialState.FAIL)
    assert set(scored.values()) == {1}
    for params in FEW.grid():
        point = FEW.find(params)
        assert scored[point] == 1 or failed_points[point] == retries + 1


def test_the_order_of_prefixes() -> None:
    trials = drive(Grid(FEW, GridOptions(), 0), 100, quadratic(FEW))
    assert [t.params for t in trials] == list(FEW.grid())


def test_shuffled_covers_the_same_points() -> None:
    options = GridOptions(order="shuffled")
    trials = drive(Grid(FEW, options, 3), 100, quadratic(FEW))
    assert [t.params for t in trials] != list(FEW.grid())
    assert sorted(map(str, (t.params for t in trials))) == sorted(map(str, FEW.grid()))


def test_continuous_ranges_are_divided_on_their_own_scale() -> None:
    space = make_space(Dimension("a", 0.01, 100.0, log=True), Dimension("b", 0.0, 1.0, step=0.5))
    grid = Grid(space, GridOptions(points=5), 0)
    assert grid.planned() == 15
    trials = drive(grid, 100, quadratic(space))
    assert sorted({t.params["a"] for t in trials}) == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])


def test_a_grid_nobody_can_finish_is_refused() -> None:
    space = make_space(*[Dimension(f"x{i}", 0.0, 1.0, step=0.05) for i in range(6)])
    with pytest.raises(StudyFileError, match="a grid of 85,766,121 points"):
        Grid(space, GridOptions(), 0)


def test_a_grid_may_leave_out_what_is_a_source_alone() -> None:
    space = build_space(
        METHODS["linear"],
        sources=["retriever", "domain"],
        groups={"segment_1": 0.0, "segment_2": 1.0},
        template="retriever",
        config={"alpha": {"values": [0, 0.25, 0.5, 0.75, 1]}},
    )
    corners = [{"alpha.segment_1": x, "alpha.segment_2": x} for x in (0.0, 1.0)]
    grid = Grid(space, GridOptions(unmerged=False), 0)
    proposed = [t.params for t in drive(grid, 100, quadratic(space))]
    assert proposed == [params for params in space.grid() if params not in corners]
    assert grid.planned() == len(proposed) == 23
    assert [grid.plans(params) for params in (*corners, proposed[0])] == [False, False, True]
    assert Grid(space, GridOptions(), 0).planned() == 25


def test_a_base_alone_is_left_out_as_well() -> None:
    space = build_space(
        METHODS["task_arithmetic"],
        sources=["one", "two"],
        groups={"all": 0.5},
        template="base",
        base="base",
        config={"weight": {"values": [0, 0.5, 1]}, "lambda": 1},
    )
    grid = Grid(space, GridOptions(unmerged=False), 0)
    left_out = [tuple(p.values()) for p in space.grid() if not grid.plans(p)]
    assert sorted(left_out) == [(0, 0), (0, 1), (1, 0)]
    assert grid.planned() == 6


def test_what_no_coefficient_depends_on_makes_no_merge_of_a_source_alone() -> None:
    prompts = Dimension.of_values("prompt.query", (0.0, 1.0, 2.0))
    space = build_space(
        METHODS["linear"],
        sources=["retriever", "domain"],
        groups={"all": 0.5},
        template="retriever",
        config={"alpha": {"values": [0, 0.5, 1]}},
        prompts=[prompts],
    )
    grid = Grid(space, GridOptions(unmerged=False), 0)
    proposed = [t.params for t in drive(grid, 100, quadratic(space))]
    assert proposed == [p for p in space.grid() if p["alpha.all"] == 0.5]
    assert grid.planned() == len(proposed) == 3
