"""Which trials share a prefix: the order of a grid, the workers that points go to, and what evolution keeps."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from mergesearch.resolving import load_study, resolve
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import Binding, SearchSpace
from mergesearch.search.prefixes import share_run, useful_boundaries
from mergesearch.search.strategies.evolution import Evolution, EvolutionOptions
from mergesearch.search.strategies.grid import Grid, GridOptions
from mergesearch.study_file import parse_study
from mergesearch.workers.prefix_memory import PrefixRoom, PrefixSpec, prefix_room
from tests.controller_toys import Bench, ScriptedPool
from tests.search_toys import drive, make_space, make_trial, quadratic
from tests.tiny_studies import TinyStudy, copy_study, make_study

DEEP = make_space(*[Dimension.of_values(f"x{i}", (0.0, 1.0, 2.0)) for i in range(3)])


def shared(a: Any, b: Any) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True)))


def test_a_worker_by_itself_goes_through_the_points_in_their_order() -> None:
    trials: list[FrozenTrial] = []
    near = None
    while proposal := Grid(DEEP, GridOptions(), 0).propose_near(trials, len(trials), near):
        trials.append(make_trial(len(trials), DEEP, proposal.params, value=0.1))
        near = proposal.params
    assert [t.params for t in trials] == list(DEEP.grid())


@settings(deadline=None, max_examples=60)
@given(data=st.data(), workers=st.integers(1, 5))
def test_every_point_shares_the_longest_prefix_that_is_left(data: st.DataObject, workers: int) -> None:
    near: dict[int, dict[str, float] | None] = dict.fromkeys(range(workers))
    flying: dict[int, int] = {}
    trials: list[FrozenTrial] = []
    left = {DEEP.point(p) for p in DEEP.grid()}
    while left or flying:
        idle = [w for w in near if w not in flying]
        if left and idle:
            worker = data.draw(st.sampled_from(idle))
            proposal = Grid(DEEP, GridOptions(), 0).propose_near(trials, len(trials), near[worker])
            assert proposal is not None
            point, last = DEEP.point(proposal.params), near[worker]
            assert point in left
            here = DEEP.point(last) if last else (math.nan,) * 3
            longest = max(shared(here, p) for p in left)
            assert shared(here, point) == longest
            busy = {DEEP.point(trials[n].params)[: longest + 1] for n in flying.values()}
            if any(shared(here, p) == longest and p[: longest + 1] not in busy for p in left):
                assert point[: longest + 1] not in busy
            left.remove(point)
            flying[worker] = len(trials)
            trials.append(make_trial(len(trials), DEEP, proposal.params, TrialState.RUNNING))
            near[worker] = proposal.params
        else:
            worker = data.draw(st.sampled_from(sorted(flying)))
            number = flying.pop(worker)
            trials[number] = make_trial(number, DEEP, trials[number].params, value=0.1)
    assert Grid(DEEP, GridOptions(), 0).exhausted(trials)


def test_only_the_order_of_prefixes_heeds_the_hint() -> None:
    shuffled = Grid(DEEP, GridOptions(order="shuffled"), 0)
    last = list(DEEP.grid())[-1]
    assert shuffled.propose_near([], 0, last) == shuffled.propose([], 0)
    assert shuffled.repeated_prefixes == 0
    assert Grid(DEEP, GridOptions(), 0).propose_near([], 0, {"other": 1.0}) == Grid(DEEP, GridOptions(), 0).propose(
        [], 0
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"), n_layers=4)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_keep_to_subtrees_of_their_own(tiny: TinyStudy, tmp_path: Path, workers: int) -> None:
    values = [0, 0.2, 0.4, 0.6, 0.8, 1]
    copied = copy_study(tiny, tmp_path / "copy").change("merge", "coefficients", to={"alpha": {"values": values}})
    bench = Bench(resolve(parse_study(copied.file)), f"sqlite:///{tmp_path}/study.db")
    bench = bench.with_search(strategy="grid", enqueue=[])
    pool = ScriptedPool(workers, seed=workers)
    bench.drive(pool)
    lower = {
        name: [task.recipe.groups[1].coefficients["weight"]["domain"] for task in tasks]  # type: ignore[index]
        for name, tasks in pool.given.items()
    }
    changes = {name: sum(a != b for a, b in itertools.pairwise(found)) for name, found in lower.items()}
    # Six subtrees: every one is begun by one worker, and at the end somebody may help another.
    assert sum(len(set(found)) for found in lower.values()) <= len(values) + workers - 1
    assert sum(changes.values()) <= len(values) - 1
    assert sum(map(len, lower.values())) == len(values) ** 2


def space(*acts_on: tuple[str, ...]) -> SearchSpace:
    """One dimension of three values per argument, which names the groups it acts on."""

    def setting(name: str) -> Any:
        return lambda value: {name: value}

    groups = tuple(dict.fromkeys(g for groups in acts_on for g in groups))
    dimensions = [Dimension.of_values(f"x{i}", (0.0, 1.0, 2.0)) for i in range(len(acts_on))]
    bindings = [Binding({d.name: 1.0}, on, setting(d.name)) for d, on in zip(dimensions, acts_on, strict=True)]
    return SearchSpace(tuple(dimensions), groups, {g: {} for g in groups}, tuple(bindings))


LOWEST = {"embeddings": -1, "a": 0, "b": 2, "c": 4, "end": math.inf}


@pytest.mark.parametrize(
    ("acts_on", "grid", "other"),
    [
        ([("a",), ("b",), ("c",)], (2, 4), ()),
        ([("b",), ("c",)], (2, 4), (2,)),  # nothing below is searched
        ([("c",)], (4,), (4,)),
        ([("end",)], (6,), (6,)),
        ([("a", "b", "c")], (), ()),
        ([("a", "b"), ("b", "c")], (2,), ()),  # a gradient
        ([("embeddings",), ("a",), ("b",)], (2,), ()),
        ([("a",), ("b",), ("c", "embeddings")], (), ()),  # what varies fastest acts from the start
        ([("a",), ("a",), ("b",), ("b",)], (2,), ()),
    ],
)
def test_boundaries_are_where_trials_repeat_what_lies_below(
    acts_on: list[tuple[str, ...]], grid: tuple[int, ...], other: tuple[int, ...]
) -> None:
    searched = space(*acts_on)
    assert useful_boundaries(Grid(searched, GridOptions(), 0), LOWEST, 6) == grid
    assert useful_boundaries(Grid(searched, GridOptions(order="shuffled"), 0), LOWEST, 6) == other
    evolution = Evolution(searched, EvolutionOptions(vary="upper_first"), 0)
    assert useful_boundaries(evolution, LOWEST, 6) == grid
    assert useful_boundaries(Evolution(searched, EvolutionOptions(), 0), LOWEST, 6) == other


def test_a_dimension_without_a_choice_is_not_searched() -> None:
    fixed = space(("a",), ("b",))
    fixed = SearchSpace((Dimension("x0", 1.0, 1.0), fixed.dimensions[1]), fixed.groups, fixed.constants, fixed.bindings)
    assert useful_boundaries(Evolution(fixed, EvolutionOptions(), 0), LOWEST, 6) == (2,)


def test_the_share_of_layers_is_that_of_the_walk() -> None:
    searched = space(("a",), ("b",), ("c",))
    boundaries, n_layers = (2, 4), 6
    points = [searched.point(p) for p in searched.grid()]
    run = n_layers
    for before, point in itertools.pairwise(points):
        run += n_layers - (0, *boundaries)[shared(before, point)]
    assert share_run(searched, LOWEST, boundaries, n_layers) == pytest.approx(run / (n_layers * len(points)))
    assert share_run(searched, LOWEST, (), n_layers) == 1


def test_evolution_keeps_the_lowest_coefficients_of_survivors() -> None:
    deep = make_space(*[Dimension(f"x{i}", 0.0, 1.0) for i in range(4)])
    options = EvolutionOptions(population_size=6, vary="upper_first")
    trials = drive(Evolution(deep, options, 0), 60, quadratic(deep))
    kept = [0] * 4
    for index, trial in enumerate(trials[6:], 6):
        earlier = [tuple(t.params.values()) for t in trials[: index - index % 6]]
        longest = max(shared(tuple(trial.params.values()), p) for p in earlier)
        for level in range(longest):
            kept[level] += 1
    children = len(trials) - 6
    assert kept[0] > children / 2  # three of four children, by the die
    assert kept[0] > kept[1] > kept[2] > 0
    assert kept[3] == 0
    whole = drive(Evolution(deep, EvolutionOptions(population_size=6), 0), 60, quadratic(deep))
    values = [t.params["x0"] for t in whole[6:]]
    assert len(set(values)) > 0.8 * children
    best = max(quadratic(deep)(t.params) for t in trials[6:])
    assert best > max(quadratic(deep)(t.params) for t in trials[:6])


def test_evolution_that_keeps_is_replayed_to_the_same_children() -> None:
    deep = make_space(*[Dimension(f"x{i}", 0.0, 1.0, step=0.05) for i in range(3)])
    options = EvolutionOptions(population_size=4, vary="upper_first")
    trials = drive(Evolution(deep, options, 1), 20, quadratic(deep))
    memory = Evolution(deep, options, 1)
    for n in range(len(trials)):
        assert Evolution(deep, options, 1).propose(trials[:n], n) == memory.propose(trials[:n], n)


SPEC = PrefixSpec(boundaries=(2, 4), prefixes=1, token_bytes=10)


@pytest.mark.parametrize(
    ("spec", "device", "room", "host", "expected"),
    [
        (SPEC, "cpu", 400, 400, PrefixRoom((2, 4), 200, 0)),  # half of what is left, and no more than is useful
        (SPEC, "cpu", 10_000, 10_000, PrefixRoom((2, 4), 200, 0)),
        (SPEC, "cpu", 399, 399, PrefixRoom((4,), 100, 0)),
        (SPEC, "cpu", 199, 199, PrefixRoom()),
        (SPEC, "cpu", -5, 199, PrefixRoom()),
        (SPEC, "cuda", 100, 10_000, PrefixRoom((2, 4), 50, 150)),
        (SPEC, "cuda:1", -5, 10_000, PrefixRoom((2, 4), 0, 200)),
        (PrefixSpec((2, 4), 8, 10), "cpu", 10_000, 0, PrefixRoom((2, 4), 1600, 0)),
        (PrefixSpec((2, 4), 1, 10, cache_bytes=150), "cpu", 0, 0, PrefixRoom((4,), 150, 0)),
        (PrefixSpec((2, 4), 1, 10, cache_bytes=30), "cpu", 0, 0, PrefixRoom((4,), 30, 0)),
        (PrefixSpec((2, 4), 1, 10, cache_bytes=500), "cuda", 100, 0, PrefixRoom((2, 4), 50, 450)),
        (PrefixSpec(), "cpu", 10_000, 10_000, PrefixRoom()),
    ],
)
def test_as_many_whole_prefixes_are_kept_as_fit(
    spec: PrefixSpec, device: str, room: int, host: int, expected: PrefixRoom
) -> None:
    assert prefix_room(spec, device, tokens=10, room=room, host=host) == expected


def test_the_study_file_decides(tiny: TinyStudy, tmp_path: Path) -> None:
    copied = copy_study(tiny, tmp_path).change("search", to={"strategy": "grid"})
    auto = load_study(copied.file)
    assert auto.evaluator_spec().prefix == PrefixSpec((2,), 1, 32 * 4)
    assert auto.unmerged_spec().prefix == PrefixSpec()
    assert auto.layer_share == (3 + 9) / 18
    off = load_study(copied.change("workers", "prefix_cache", to="off").file)
    assert off.evaluator_spec().prefix == PrefixSpec()
    assert off.layer_share is None
    granted = load_study(copied.change("workers", "prefix_cache", to="1.5 KB").file)
    assert granted.evaluator_spec().prefix.cache_bytes == 1536
    assert granted.score_relevant() == auto.score_relevant() == off.score_relevant()
