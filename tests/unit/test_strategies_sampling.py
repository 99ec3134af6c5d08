"""Point-by-point strategies: what the mirror shows Optuna's samplers."""

from __future__ import annotations

import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mergesearch.search.quiet import quiet_optuna
from mergesearch.search.registry import STRATEGIES
from mergesearch.search.sampling import Mirror
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategies.tpe import TPE, TPEOptions
from tests.search_toys import SPACES, drive, make_trial, quadratic

MIXED = SPACES["mixed"]
DEFAULTS = {"multivariate": True, "constant_liar": True}


def test_the_mirror_learns_from_what_happened_inside_the_space_only() -> None:
    inside = [t.params for t in drive(TPE(MIXED, TPEOptions(), 0), 4, quadratic(MIXED))]
    history = [
        make_trial(0, MIXED, {}, value=0.9),
        make_trial(1, MIXED, inside[0], value=0.5),
        make_trial(2, MIXED, inside[1], TrialState.RUNNING),
        make_trial(3, MIXED, inside[2], TrialState.FAIL),
        make_trial(4, MIXED, inside[3], TrialState.PRUNED),
    ]
    seen: list[list[FrozenTrial]] = []

    class Spy(RandomSampler):
        def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
            states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)
            seen.append([t for t in study.get_trials(states=states) if t.number != trial.number])
            return {}

    mirror = Mirror(MIXED)
    mirror.ask(history, Spy(seed=0))
    assert [t.state for t in seen[0]] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED]
    uneven = MIXED.by_name["uneven"]
    assert seen[0][0].params["uneven"] == uneven.index(inside[0]["uneven"])
    history[2] = make_trial(2, MIXED, inside[1], value=0.7)
    mirror.ask(history, Spy(seed=1))
    assert [t.value for t in seen[1]] == [0.5, 0.7, None], "in number order, and the earlier ask left nothing"
    history[1] = make_trial(1, MIXED, inside[0], value=0.1)
    mirror.ask(history, Spy(seed=2))
    assert [t.value for t in seen[2]] == [0.1, 0.7, None], "a history that was rewritten is read anew"


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "evolution"])
def test_a_trial_that_was_stopped_teaches_its_estimate_and_not_its_running_mean(name: str) -> None:
    three = SPACES["three"]
    objective = quadratic(three)
    chosen = STRATEGIES[name]
    options = {"n_startup_trials": 3} if name in ("tpe", "gp") else {}

    def history(stopped: bool) -> list[FrozenTrial]:
        """Every third trial is stopped, with a running mean that says nothing."""
        strategy, trials = chosen(three, chosen.Options(**options), 0), list[FrozenTrial]()
        for number in range(14):
            proposal = strategy.propose(trials, number)
            assert proposal is not None
            value = objective(proposal.params)
            made = make_trial(number, three, proposal.params, value=value, attrs=proposal.attrs)
            if stopped and number % 3 == 2:
                made = make_trial(number, three, proposal.params, TrialState.PRUNED, 100.0, attrs=proposal.attrs)
                made.set_user_attr("estimate", value)
            trials.append(made)
        return trials

    assert [t.params for t in history(True)] == [t.params for t in history(False)]


def test_a_repeated_draw_moves_to_an_open_point() -> None:
    few = SPACES["few"]
    best = {"x": 0.5, "y": 3.0}
    points = [p for p in few.grid() if p != best]
    history = [make_trial(k, few, p, value=float(-k)) for k, p in enumerate(points)]
    proposal = TPE(few, TPEOptions(), 0).propose(history, len(history))
    assert proposal is not None
    assert proposal.params == best


def test_a_failed_point_is_tried_again_as_often_as_allowed() -> None:
    few = SPACES["few"]
    history = [make_trial(k, few, p, value=0.0) for k, p in enumerate(few.grid())]
    history[3] = make_trial(3, few, history[3].params, TrialState.FAIL)
    once, never = TPE(few, TPEOptions(retries=1), 0), TPE(few, TPEOptions(retries=0), 0)
    proposal = once.propose(history, len(history))
    assert proposal is not None
    assert proposal.params == history[3].params
    assert never.propose(history, len(history)) is None
    assert never.exhausted(history)
    assert not once.exhausted(history)


def test_tpe_checks_its_options() -> None:
    with pytest.raises(ValueError, match="needs `multivariate: true`"):
        TPEOptions(group=True, multivariate=False)


@pytest.mark.parametrize("options", [{"group": True}, {"multivariate": False}, {"constant_liar": False}])
def test_variants_of_tpe_work(options: dict[str, bool]) -> None:
    trials = drive(TPE(MIXED, TPEOptions(n_startup_trials=3, **options), 0), 10, quadratic(MIXED))
    assert all(MIXED.contains(t.params) for t in trials)


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    seeds = [derive_seed(0, "tpe", 1), derive_seed(0, "tpe", 2), derive_seed(1, "tpe", 1), derive_seed(0, "gp", 1)]
    assert len(set(seeds)) == 4
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")
    # By sha256sum of `[7, "tpe", 3]`: what a study proposed last year it proposes today.
    assert derive_seed(7, "tpe", 3) == 1550055856


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("options", [{}, {"group": True}, {"multivariate": False}, {"constant_liar": False}])
def test_tpe_proposes_what_optunas_sampler_finds_by_itself(space: str, options: dict[str, bool]) -> None:
    """Ours is told the dimensions that Optuna's works out from the trials."""
    strategy = TPE(SPACES[space], TPEOptions(n_startup_trials=4, **options), 5)
    history = drive(TPE(SPACES[space], TPEOptions(n_startup_trials=4), 1), 9, quadratic(SPACES[space]))
    for n in (0, 4, len(history)):
        with quiet_optuna():
            plain = TPESampler(n_startup_trials=4, seed=7, **{**DEFAULTS, **options})
            expected = Mirror(SPACES[space]).ask(history[:n], plain)
            assert Mirror(SPACES[space]).ask(history[:n], strategy.sampler(7)) == expected
