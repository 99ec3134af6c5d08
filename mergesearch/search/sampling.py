"""Point-by-point strategies over Optuna's samplers.

A sampler is given a study in memory that mirrors the real one: the same trials, without those outside of
the space, and with unevenly spaced values by rank. It is made afresh and seeded for every trial number, so a
proposal depends on history and number alone, and the database is left in peace while the sampler thinks.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field

from mergesearch.search.ledger import IN_FLIGHT, Ledger, score, state
from mergesearch.search.quiet import quiet_optuna
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategy import Proposal, Strategy, StrategyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.samplers import BaseSampler

    from mergesearch.search.points import Params, SearchSpace

MOST_LISTED = 50_000
"""Finite spaces up to this size are listed to find an unvisited point near a repeated proposal."""


class SamplerOptions(StrategyOptions):
    """Options of all point-by-point strategies."""

    retries: int = Field(1, ge=0)
    """In a finite space: how often a point whose trial failed may be proposed again."""


class SamplerStrategy(Strategy):
    """A strategy that is one of Optuna's samplers.

    In a finite space no point is proposed twice: a repeated proposal is drawn again, and at last moved to the
    closest point that nobody visited, so that a budget never goes to points whose score is known.
    """

    Options: ClassVar[type[StrategyOptions]] = SamplerOptions
    options: SamplerOptions
    draws: ClassVar[int] = 8
    """How often a repeated proposal is drawn again."""

    def __init__(self, space: SearchSpace, options: StrategyOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        self._mirror = Mirror(space)

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """A fresh sampler; called inside `quiet_optuna`."""

    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """What a sampler seeded for `number` proposes after `history`."""
        attrs = {"strategy": self.name}
        slot = f"{self.name}:{number}"
        if self.space.size() is None:
            return Proposal(self._draw(history, number, 0), attrs, slot)
        closed = Ledger(self.space, history).closed(self.options.retries)
        if len(closed) == self.space.size():
            return None
        for attempt in range(self.draws):
            params = self._draw(history, number, attempt)
            if self.space.point(params) not in closed:
                return Proposal(params, attrs, slot)
        if (self.space.size() or 0) <= MOST_LISTED:
            rng = np.random.default_rng(derive_seed(self.seed, self.name, number, "closest"))
            params = self._closest_open(params, closed, rng)
        return Proposal(params, attrs, slot)

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether the space is finite and nothing in it is left to evaluate."""
        if self.space.size() is None:
            return False
        ledger = Ledger(self.space, history)
        return len(ledger.closed(self.options.retries)) == self.space.size() and not ledger.in_flight

    def _draw(self, history: Sequence[FrozenTrial], number: int, attempt: int) -> Params:
        with quiet_optuna():
            sampler = self.sampler(derive_seed(self.seed, self.name, number, attempt))
            return self._mirror.ask(history, sampler)

    def _closest_open(self, params: Params, closed: set[tuple[float, ...]], rng: np.random.Generator) -> Params:
        """The open point closest to `params` in units of the ranges; a random one of several."""
        dimensions = self.space.dimensions
        open_points = [p for p in self._every if self.space.point(p) not in closed]
        positions_PD = np.array([[d.to_unit(p[d.name]) for d in dimensions] for p in open_points])
        here_D = np.array([d.to_unit(params[d.name]) for d in dimensions])
        distances_P = np.linalg.norm(positions_PD - here_D, axis=1)
        closest = np.flatnonzero(distances_P <= distances_P.min() + 1e-9)
        return dict(open_points[int(rng.choice(closest))])

    @cached_property
    def _every(self) -> list[Params]:
        return list(self.space.grid())


class Mirror:
    """A study in memory that holds what a sampler may learn from, kept in step with the real one."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._distributions = {d.name: d.sampling_distribution() for d in space.dimensions}
        self._clear()

    def ask(self, history: Sequence[FrozenTrial], sampler: BaseSampler) -> Params:
        """What `sampler` proposes after `history`. Nothing of the question stays behind."""
        self._follow(history)
        self._study.sampler = sampler
        trial = self._study.ask(self._distributions)
        # A trial that failed teaches samplers nothing, so the asked one does not count as in flight.
        self._study.tell(trial, state=TrialState.FAIL)
        return {d.name: d.from_sampling(trial.params[d.name]) for d in self._space.dimensions}

    def _clear(self) -> None:
        with quiet_optuna():
            self._storage = InMemoryStorage()
            study_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], "mirror")
            self._study = optuna.Study("mirror", self._storage)
        self._study_id = study_id
        self._seen: list[_Seen] = []
        self._ids: dict[int, int] = {}

    def _follow(self, history: Sequence[FrozenTrial]) -> None:
        """Bring the mirror to `history`: usually a trial or two have finished or are new."""
        if len(history) < len(self._seen) or not all(map(_Seen.may_become, self._seen, history)):
            self._clear()
        for index, trial in enumerate(history):
            if index >= len(self._seen):
                self._add(index, trial)
                self._seen.append(_Seen.of(trial))
            elif self._seen[index].state != trial.state:
                if index in self._ids:
                    self._finish(self._ids[index], trial)
                self._seen[index] = _Seen.of(trial)

    def _add(self, index: int, trial: FrozenTrial) -> None:
        if not self._space.contains(trial.params) or not _teaches(trial):
            return
        template = create_trial(
            state=TrialState.RUNNING if trial.state in IN_FLIGHT else state(trial),
            value=score(trial),
            params={d.name: d.to_sampling(trial.params[d.name]) for d in self._space.dimensions},
            distributions=self._distributions,
            intermediate_values=trial.intermediate_values,
        )
        self._ids[index] = self._storage.create_new_trial(self._study_id, template)

    def _finish(self, trial_id: int, trial: FrozenTrial) -> None:
        for step, reported in trial.intermediate_values.items():
            self._storage.set_trial_intermediate_value(trial_id, step, reported)
        end, value = state(trial) if _teaches(trial) else TrialState.FAIL, score(trial)
        self._storage.set_trial_state_values(trial_id, end, None if value is None else [value])


class _Seen(NamedTuple):
    """A trial as it was when the mirror copied it; callers may go on to change theirs while it is in flight."""

    trial: FrozenTrial
    params: dict[str, Any]
    state: TrialState
    values: list[float] | None

    @classmethod
    def of(cls, trial: FrozenTrial) -> _Seen:
        values = None if trial.values is None else list(trial.values)
        return cls(trial, dict(trial.params), trial.state, values)

    def may_become(self, now: FrozenTrial) -> bool:
        """Whether `now` can be what became of the trial since."""
        if now is self.trial and self.state not in IN_FLIGHT:
            return True  # nobody changes a trial that has ended
        if self.params != now.params:
            return False
        return self.state in IN_FLIGHT or (self.state == now.state and self.values == now.values)


def _teaches(trial: FrozenTrial) -> bool:
    """Whether a sampler can use the trial; one that is COMPLETE without a finite value it cannot."""
    if trial.state == TrialState.COMPLETE:
        return score(trial) is not None
    return trial.state in IN_FLIGHT or trial.state == TrialState.PRUNED
