"""CMA-ES and evolution by whole generations: what they reuse, wait for and survive."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState

from mergesearch.errors import StudyFileError
from mergesearch.evaluation.objectives import Objectives
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import SearchSpace
from mergesearch.search.population import pack_genes, unpack_genes
from mergesearch.search.strategies.cmaes import CMAES, CMAESOptions
from mergesearch.search.strategies.evolution import Evolution, EvolutionOptions
from mergesearch.search.strategy import Strategy
from mergesearch.storage.attributes import MOST_CHARACTERS
from tests.search_toys import SPACES, drive, drive_in_parallel, make_space, make_trial, quadratic

THREE = SPACES["three"]


def strategies(space: SearchSpace = THREE, seed: int = 0) -> list[Strategy]:
    return [
        CMAES(space, CMAESOptions(population_size=6), seed),
        Evolution(space, EvolutionOptions(population_size=6), seed),
    ]


def origin(trial: FrozenTrial) -> tuple[int, int]:
    attrs = trial.user_attrs["proposal"]
    return attrs["generation"], attrs["member"]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("workers", [1, 4, 6])
def test_no_trial_is_wasted(index: int, workers: int) -> None:
    """Parallel workers and failures: every generation is complete and no member is evaluated twice."""
    strategy = strategies()[index]
    trials = drive_in_parallel(strategy, 36, quadratic(THREE), workers=workers, failing=0.2, seed=workers)
    assert Counter(map(origin, trials)) == Counter((g, m) for g in range(6) for m in range(6))


@pytest.mark.parametrize("index", [0, 1])
def test_parallel_and_serial_search_alike(index: int) -> None:
    """Whole generations make the sequence independent of the number of workers."""
    serial = drive(strategies()[index], 30, quadratic(THREE))
    parallel = drive_in_parallel(strategies()[index], 30, quadratic(THREE), workers=5, seed=1)
    assert [t.params for t in serial] == [t.params for t in parallel]


@pytest.mark.parametrize("index", [0, 1])
def test_a_generation_waits_for_its_last_member(index: int) -> None:
    strategy = strategies()[index]
    trials = drive(strategy, 6, quadratic(THREE))
    flying = [
        *trials[:5],
        make_trial(5, THREE, trials[5].params, TrialState.RUNNING, attrs=trials[5].user_attrs["proposal"]),
    ]
    assert strategy.propose(flying, 6) is None
    assert not strategy.exhausted(flying)
    failed = [
        *trials[:5],
        make_trial(5, THREE, trials[5].params, TrialState.FAIL, attrs=trials[5].user_attrs["proposal"]),
    ]
    proposal = strategy.propose(failed, 6)
    assert proposal is not None
    assert (proposal.attrs["generation"], proposal.attrs["member"]) == (1, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_a_generation_that_failed_whole_is_drawn_again(index: int) -> None:
    strategy = strategies()[index]
    trials: list[FrozenTrial] = []
    for number in range(12):
        proposal = strategy.propose(trials, number)
        assert proposal is not None
        trials.append(make_trial(number, THREE, proposal.params, TrialState.FAIL, attrs=proposal.attrs))
    assert [origin(t) for t in trials] == [(g, m) for g in range(2) for m in range(6)]
    assert len({str(t.params) for t in trials}) == 12


@pytest.mark.parametrize("index", [0, 1])
def test_what_was_evaluated_counts_and_not_what_would_be_drawn(index: int) -> None:
    """Another machine's arithmetic may have drawn otherwise; its trials still make the generation."""
    strategy = strategies()[index]
    trials = drive(strategy, 6, quadratic(THREE))
    moved = []
    for t in trials:
        attrs = dict(t.user_attrs["proposal"])
        params = {k: 0.9 * v for k, v in t.params.items()}
        moved.append(make_trial(t.number, THREE, params, value=t.value, attrs=attrs))
    proposal = strategy.propose(moved, 6)
    assert proposal is not None
    assert (proposal.attrs["generation"], proposal.attrs["member"]) == (1, 0)
    original = strategy.propose(trials, 6)
    assert original is not None
    assert proposal.params != original.params


def fresh(space: SearchSpace) -> CMAES:
    return CMAES(space, CMAESOptions(population_size=4), 0)


@pytest.mark.parametrize(
    ("n_dimensions", "step", "stored"),
    [(300, 0.05, True), (300, None, False), (700, 0.05, False)],
)
def test_a_generation_in_many_dimensions_fits_into_a_study(n_dimensions: int, step: float | None, stored: bool) -> None:
    """However much of it can be stored, a fresh process goes on as this one does."""
    space = make_space(*[Dimension(f"x{i}", 0.0, 1.0, step=step) for i in range(n_dimensions)])
    one = fresh(space)
    trials = drive(one, 4, quadratic(space))
    for trial in trials:
        attrs = trial.user_attrs["proposal"]
        assert len(json.dumps(attrs)) <= MOST_CHARACTERS
        assert ("genes" in attrs) == stored
    proposal = one.propose(trials, 4)
    assert proposal is not None
    assert (proposal.attrs["generation"], proposal.attrs["member"]) == (1, 0)
    assert fresh(space).propose(trials, 4) == proposal


def test_positions_before_rounding_are_what_cmaes_learns_from() -> None:
    """Genes that another machine drew count; without them the points themselves do."""
    space = SPACES["steps"]
    trials = drive(fresh(space), 4, quadratic(space))

    def moved(genes: str) -> list[FrozenTrial]:
        params = [{"x": 0.5 + 0.05 * k, "y": 0.3} for k in range(4)]
        attrs = [{**t.user_attrs["proposal"], "genes": genes} for t in trials]
        return [
            make_trial(t.number, space, p, value=t.value, attrs=a)
            for t, p, a in zip(trials, params, attrs, strict=True)
        ]

    ahead = fresh(space).propose(moved(pack_genes([0.9, 0.9])), 4)
    without = fresh(space).propose(moved("not packed"), 4)
    assert ahead is not None
    assert without is not None
    assert ahead.attrs["generation"] == without.attrs["generation"] == 1
    assert ahead.params != without.params


def test_genes_come_back_as_they_were() -> None:
    genes = (0.5, -1.25, float(np.float32(0.1)))
    assert unpack_genes(pack_genes(genes)) == genes
    assert unpack_genes([0.1]) == unpack_genes("abc") == unpack_genes("") == ()


@pytest.mark.parametrize("index", [0, 1])
def test_other_options_start_over_and_reuse_what_is_known(index: int) -> None:
    trials = drive(strategies()[index], 9, quadratic(THREE))
    other: Strategy = (
        CMAES(THREE, CMAESOptions(population_size=5), 0),
        Evolution(THREE, EvolutionOptions(population_size=5, adopt=False), 0),
    )[index]
    more = drive(other, 19, quadratic(THREE), history=trials)[9:]
    # The first generation has the same seed, so its five points are scored already and cost nothing.
    assert [origin(t) for t in more] == [(g, m) for g in (1, 2) for m in range(5)]


def test_evolution_starts_from_the_best_of_the_anchors() -> None:
    values = {0.1: -3.0, 0.2: -1.0, 0.3: -2.0, 0.4: -9.0}
    anchors = [make_trial(0, THREE, {}, value=0.0)]
    anchors += [
        make_trial(k + 1, THREE, dict.fromkeys(THREE.by_name, x), value=v) for k, (x, v) in enumerate(values.items())
    ]
    evolution = Evolution(THREE, EvolutionOptions(population_size=6), 0)
    trials = drive(evolution, 8, quadratic(THREE), history=anchors)[5:]
    assert [origin(t) for t in trials] == [(0, 3), (0, 4), (0, 5)], "three anchors are members already"
    alone = drive(Evolution(THREE, EvolutionOptions(population_size=6, adopt=False), 0), 3, quadratic(THREE))
    assert [origin(t) for t in alone] == [(0, 0), (0, 1), (0, 2)]


def test_evolution_waits_for_anchors_in_flight() -> None:
    point = dict.fromkeys(THREE.by_name, 0.1)
    flying = [make_trial(0, THREE, point, TrialState.RUNNING)]
    assert Evolution(THREE, EvolutionOptions(), 0).propose(flying, 1) is None
    assert Evolution(THREE, EvolutionOptions(adopt=False), 0).propose(flying, 1) is not None


@pytest.mark.parametrize(
    "options",
    [{"crossover": c} for c in ("uniform", "blx_alpha", "sbx", "vsbx", "spx", "undx")] + [{"crossover_prob": 0}],
)
@pytest.mark.parametrize("space", ["one", "three", "mixed"])
def test_every_crossover_works_in_every_space(space: str, options: dict[str, Any]) -> None:
    evolution = Evolution(SPACES[space], EvolutionOptions(population_size=4, **options), 1)
    trials = drive(evolution, 14, quadratic(SPACES[space]))
    assert all(SPACES[space].contains(t.params) for t in trials)


def first_points(
    options: CMAESOptions, space: SearchSpace = THREE, history: list[FrozenTrial] | None = None
) -> list[float]:
    """Mean position per dimension of a large first generation."""
    trials = drive(CMAES(space, options, 0), 60 + len(history or []), quadratic(space), history=history or [])
    new = trials[len(history or []) :]
    return [sum(t.params[d.name] for t in new) / len(new) for d in space.dimensions]


def test_cmaes_starts_where_it_is_told() -> None:
    def at(**options: Any) -> CMAESOptions:
        return CMAESOptions(population_size=60, sigma0=0.02, **options)

    assert first_points(at()) == pytest.approx([0, 0, 0], abs=0.05)
    assert first_points(at(x0={"x1": 0.5})) == pytest.approx([0, 0.5, 0], abs=0.05)
    best = [
        make_trial(0, THREE, {"x0": 0.5, "x1": -0.5, "x2": 0.25}, value=0.9),
        make_trial(1, THREE, dict.fromkeys(THREE.by_name, 0.0), value=0.1),
    ]
    assert first_points(at(x0="best"), history=best) == pytest.approx([0.5, -0.5, 0.25], abs=0.05)
    corner = SearchSpace(
        THREE.dimensions, THREE.groups, THREE.constants, THREE.bindings, template=dict.fromkeys(THREE.by_name, 0.75)
    )
    assert first_points(at(x0="template"), corner) == pytest.approx([0.75] * 3, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"separable": True},
        {"lr_adapt": True},
        {"margin": False},
        {"margin": True},
        {"restart": "none"},
        {"sigma0": 1.0},
    ],
)
@pytest.mark.parametrize("space", ["three", "mixed", "steps"])
def test_every_variant_of_cmaes_works(space: str, options: dict[str, Any]) -> None:
    trials = drive(CMAES(SPACES[space], CMAESOptions(**options), 2), 40, quadratic(SPACES[space]))
    assert all(SPACES[space].contains(t.params) for t in trials)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x0": "template"}, "x0: the template alone is no point of the space"),
        ({"x0": {"x0": 3.0}}, "x0: x0: 3 is not in the space"),
        ({"x0": {"y": 0.0}}, "x0: unknown parameter 'y'"),
    ],
)
def test_a_start_outside_of_the_space_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        CMAES(THREE, CMAESOptions(**options), 0)


def test_one_dimension_has_nothing_to_separate() -> None:
    with pytest.raises(StudyFileError, match="at least two dimensions"):
        CMAES(SPACES["one"], CMAESOptions(separable=True), 0)


def test_variants_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="separable and lr_adapt are variants that exclude each other"):
        CMAESOptions(separable=True, lr_adapt=True)
    with pytest.raises(ValueError, match="population_size must be at least 3"):
        EvolutionOptions(crossover="spx", population_size=2)


def test_cmaes_converges_restarts_or_ends() -> None:
    space = make_space(Dimension("x", 0.0, 1.0))
    ends = CMAES(space, CMAESOptions(restart="none", sigma0=0.1), 0)
    trials = drive(ends, 2000, quadratic(space))
    assert len(trials) < 2000
    assert max(t.value or -1.0 for t in trials) == pytest.approx(0.0, abs=1e-12)
    again = drive(CMAES(space, CMAESOptions(restart="ipop", sigma0=0.1), 0), len(trials) + 8, quadratic(space))
    assert len(again) == len(trials) + 8


def with_attrs(trial: FrozenTrial, **attrs: Any) -> FrozenTrial:
    trial.user_attrs.update(attrs)
    return trial


def test_the_first_mean_is_the_best_trial_that_guards_keep() -> None:
    points = ({"x0": 0.5, "x1": 0.5, "x2": 0.5}, {"x0": -0.5, "x1": 0.0, "x2": 0.25})
    lost = with_attrs(make_trial(0, THREE, points[0], value=0.9), excess={"other": 0.2})
    kept = with_attrs(make_trial(1, THREE, points[1], value=0.4), excess={"other": -0.1})

    def search(*adopted: FrozenTrial) -> Any:
        return CMAES(THREE, CMAESOptions(x0="best"), 0).propose(list(adopted), len(adopted))

    alone = make_trial(1, THREE, points[1], value=0.4)
    assert search(lost, kept).params == search(make_trial(0, THREE, points[0], value=0.0), alone).params


def test_a_front_is_sought_beside_trials_that_another_program_ended() -> None:
    """They have a value and no objectives, as founders and as members."""
    strategy = Evolution(THREE, EvolutionOptions(population_size=4), 0)
    strategy.objectives = Objectives({"a": "target", "b": "others"}, {"a": 1.0, "b": 1.0})
    trials = [make_trial(n, THREE, {"x0": 0.1 * n, "x1": 0.0, "x2": 0.5}, value=-1.0 - n) for n in range(2)]
    with_attrs(trials[0], objectives={"target": -1.0, "others": -1.0})
    for number in range(2, 16):
        proposal = strategy.propose(trials, number)
        assert proposal is not None
        value = quadratic(THREE)(proposal.params)
        told = {} if number == 6 else {"objectives": {"target": value - 0.1, "others": value + 0.1}}
        trials.append(with_attrs(make_trial(number, THREE, proposal.params, value=value, attrs=proposal.attrs), **told))
    again = Evolution(THREE, EvolutionOptions(population_size=4), 0)
    again.objectives = strategy.objectives
    assert again.propose(trials, 16) == strategy.propose(trials, 16)
