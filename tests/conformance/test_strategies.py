"""What every search strategy must do, run over the registry."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections import Counter
from typing import ClassVar

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from mergesearch.errors import StudyFileError
from mergesearch.search.registry import STRATEGIES
from mergesearch.search.strategy import Strategy
from tests.search_toys import (
    SPACES,
    drive,
    drive_in_parallel,
    make_space,
    make_strategy,
    make_trial,
    quadratic,
    space_for,
)

NAMES = sorted(STRATEGIES)
SHORT = {"gp": 5, "embedding_surrogate": 8}
"""Trials per test, for strategies that think long."""


def params_of(trials: list[FrozenTrial]) -> list[dict[str, float]]:
    return [dict(t.params) for t in trials]


def length(name: str, usual: int) -> int:
    return min(usual, SHORT.get(name, usual))


def proposals_without_values(strategy: Strategy, n: int) -> list[dict[str, float]]:
    return params_of(drive(strategy, n, quadratic(strategy.space)))


@pytest.mark.parametrize("name", NAMES)
def test_it_introduces_itself(name: str) -> None:
    chosen = STRATEGIES[name]
    assert chosen.name == name
    assert chosen.title
    assert chosen.__doc__
    for field, info in chosen.Options.model_fields.items():
        assert info.description, f"{name}: option {field} has no docstring"
        assert not info.is_required(), f"{name}: option {field} has no default"
    with pytest.raises(ValueError, match="no_such_option"):
        chosen.Options(no_such_option=1)


@pytest.mark.parametrize("space", sorted(SPACES))
@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_points_of_every_kind_of_space(name: str, space: str) -> None:
    searched = space_for(name, space)
    trials = drive(make_strategy(name, searched), length(name, 14), quadratic(searched))
    assert trials
    for trial in trials:
        assert searched.contains(trial.params)
        assert all(type(v) is float for v in trial.params.values())
        assert searched.snap(trial.params) == trial.params
        searched.coefficients(trial.params)
        json.dumps(trial.user_attrs)


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_instance_goes_on_where_another_stopped(name: str) -> None:
    space = space_for(name, "mixed")
    trials = drive_in_parallel(make_strategy(name, space), length(name, 24), quadratic(space), workers=3, failing=0.2)
    memory = make_strategy(name, space)
    for n in range(len(trials) + 1):
        if name in SHORT and n < len(trials):
            continue
        expected = memory.propose(trials[:n], n)
        assert make_strategy(name, space).propose(trials[:n], n) == expected
        assert make_strategy(name, space).exhausted(trials[:n]) == memory.exhausted(trials[:n])


@pytest.mark.parametrize("name", NAMES)
def test_what_was_asked_before_changes_nothing(name: str) -> None:
    space = space_for(name, "steps")
    objective = quadratic(space)
    trials = drive(make_strategy(name, space), length(name, 16), objective)
    elsewhere = [
        make_trial(t.number, space, t.params, value=-objective(t.params), attrs=t.user_attrs["proposal"])
        for t in trials
    ]
    used = make_strategy(name, space)
    used.propose(elsewhere, len(elsewhere))
    used.propose(trials[:3], 3)
    n = len(trials)
    assert used.propose(trials, n) == used.propose(trials, n) == make_strategy(name, space).propose(trials, n)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_worker_evaluated_last_may_change_the_order_only(name: str) -> None:
    space = space_for(name, "few")
    objective = quadratic(space)
    trials: list[FrozenTrial] = []
    for number in range(length(name, 15)):
        near = None if number % 3 == 0 else trials[number // 3].params
        proposal = make_strategy(name, space).propose_near(trials, number, near)
        assert make_strategy(name, space).propose_near(trials, number, near) == proposal
        plain = make_strategy(name, space).propose(trials, number)
        if name != "grid":
            assert proposal == plain
        assert (proposal is None) == (plain is None)
        if proposal is None:
            break
        value = objective(proposal.params)
        trials.append(make_trial(number, space, proposal.params, value=value, attrs=proposal.attrs))
    assert len({space.point(t.params) for t in trials}) == len(trials)


_SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.conformance.test_strategies import NAMES, length, make_strategy, proposals_without_values, space_for
found = {n: proposals_without_values(make_strategy(n, space_for(n, "mixed"), seed=5), length(n, 14)) for n in NAMES}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def in_another_process(pytestconfig: pytest.Config) -> dict[str, list[dict[str, float]]]:
    command = [sys.executable, "-c", _SCRIPT, str(pytestconfig.rootpath)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_trials_in_another_process(
    name: str, in_another_process: dict[str, list[dict[str, float]]]
) -> None:
    here = proposals_without_values(make_strategy(name, space_for(name, "mixed"), seed=5), length(name, 14))
    assert here == in_another_process[name]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "greedy_soup"])
def test_other_seeds_give_other_trials(name: str) -> None:
    options = {"grid": {"order": "shuffled"}, "embedding_surrogate": {"initial": "sobol"}}.get(name, {})
    found = [
        proposals_without_values(make_strategy(name, SPACES["steps"], seed=seed, **options), 3) for seed in (1, 2, 3)
    ]
    assert found[0] != found[1] != found[2] != found[0]


@pytest.mark.parametrize("workers", [1, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_parallel_workers_with_failures_never_stall(name: str, workers: int) -> None:
    space = space_for(name, "steps")
    n = length(name, 40)
    outside = make_trial(0, space, {}, value=0.5)
    low, middle = ({d.name: d.from_unit(at) for d in space.dimensions} for at in (0.0, 0.5))
    anchors = [outside, make_trial(1, space, low, value=-1.0), make_trial(2, space, middle, TrialState.RUNNING)]
    strategy = make_strategy(name, space)
    trials = drive_in_parallel(
        strategy, n, quadratic(space), workers=workers, failing=0.25, seed=workers, history=anchors
    )
    assert len(trials) == n or strategy.exhausted(trials)
    assert all(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in trials)


@pytest.mark.parametrize("name", NAMES)
def test_no_slot_is_given_away_twice(name: str) -> None:
    space = space_for(name, "few")
    strategy = make_strategy(name, space)
    trials: list[FrozenTrial] = []
    slots = []
    for number in range(length(name, 20)):
        proposal = strategy.propose(trials, number)
        if proposal is None:
            break
        slots.append(proposal.slot)
        state = TrialState.FAIL if number % 4 == 1 else TrialState.COMPLETE
        value = None if state == TrialState.FAIL else float(number % 3)
        trials.append(make_trial(number, space, proposal.params, state, value, proposal.attrs))
    assert all(slots)
    assert len(set(slots)) == len(slots)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "greedy_soup"])
def test_a_finite_space_is_used_up_without_repeats(name: str) -> None:
    few = SPACES["few"].dimensions
    space = make_space(*(few[1:] if name in SHORT else few))
    middle = {d.name: d.from_unit(0.5) for d in space.dimensions}
    anchor = make_trial(0, space, middle, value=-0.2)
    strategy = make_strategy(name, space)
    trials = drive_in_parallel(strategy, 100, quadratic(space), workers=2, history=[anchor])
    visits = Counter(space.point(t.params) for t in trials)
    assert max(visits.values()) == 1
    assert strategy.exhausted(trials)
    assert strategy.propose(trials, len(trials)) is None
    assert len(visits) == space.size()


@pytest.mark.parametrize("name", NAMES)
def test_it_waits_only_for_trials_in_flight(name: str) -> None:
    space = space_for(name, "point")
    strategy = make_strategy(name, space)
    first = strategy.propose([], 0)
    assert first is not None
    flying = [make_trial(0, space, first.params, TrialState.RUNNING, attrs=first.attrs)]
    assert strategy.propose(flying, 1) is None
    assert not strategy.exhausted(flying)
    scored = [make_trial(0, space, first.params, value=0.1, attrs=first.attrs)]
    assert strategy.propose(scored, 1) is None
    assert strategy.exhausted(scored)


@pytest.mark.parametrize("name", NAMES)
def test_failed_and_pruned_trials_are_no_obstacle(name: str) -> None:
    space = space_for(name, "three")
    strategy = make_strategy(name, space)
    trials: list[FrozenTrial] = []
    for number in range(length(name, 20)):
        proposal = strategy.propose(trials, number)
        assert proposal is not None
        state = [TrialState.FAIL, TrialState.PRUNED, TrialState.PRUNED][number % 3]
        value = -1.0 if number % 3 == 2 else None
        trials.append(make_trial(number, space, proposal.params, state, value, proposal.attrs))


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("grid", "random", "greedy_soup", "embedding_surrogate")]
)
def test_it_learns(name: str) -> None:
    """On a bowl in three dimensions its later proposals lie at most half as far below the top as random ones."""
    space = SPACES["three"]
    objective = quadratic(space)
    n, seeds = (9, 1) if name == "gp" else (80, 3)

    def shortfall(strategy_name: str) -> float:
        chosen = STRATEGIES[strategy_name]
        options = {"n_startup_trials": 4} if strategy_name == "gp" else {}
        found = []
        for seed in range(seeds):
            trials = drive(chosen(space, chosen.Options(**options), seed), n, objective)
            found += [-objective(t.params) for t in trials[n * 2 // 3 :]]
        return sum(found) / len(found)

    assert shortfall(name) < 0.5 * shortfall("random")


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_from_trials_of_others(name: str) -> None:
    """Trials of another strategy are history like any other: a scored point of a finite space is never repeated."""
    space = space_for(name, "few")
    before = drive(make_strategy("random", space, seed=9), 6, quadratic(space))
    trials = drive(make_strategy(name, space), length(name, 10) + 2, quadratic(space), history=before)
    assert len(trials) > len(before)
    assert len({space.point(t.params) for t in trials}) == len(trials)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_quiet_and_leaves_optuna_as_it_was(name: str) -> None:
    class Ear(logging.Handler):
        heard: ClassVar[list[str]] = []

        def emit(self, record: logging.LogRecord) -> None:
            # Optuna recommends the greenlet package, once per process, where it is not installed.
            if "greenlet" not in record.getMessage():
                self.heard.append(record.getMessage())

    ear, logger = Ear(), logging.getLogger("optuna")
    before = (optuna.logging.get_verbosity(), list(warnings.filters))
    logger.addHandler(ear)
    try:
        space = space_for(name, "three")
        drive(make_strategy(name, space), length(name, 9), quadratic(space))
    finally:
        logger.removeHandler(ear)
    assert ear.heard == []
    assert (optuna.logging.get_verbosity(), list(warnings.filters)) == before


def test_grid_refuses_a_continuum_unless_told_how_to_divide_it() -> None:
    chosen = STRATEGIES["grid"]
    with pytest.raises(StudyFileError, match="x0: a grid needs values here"):
        chosen(SPACES["three"], chosen.Options(), 0)
