"""What a history knows about every point of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from mergesearch.evaluation.objectives import EXCESS_ATTR, OBJECTIVES_ATTR, PENALTY
from mergesearch.evaluation.result import ESTIMATE_ATTR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mergesearch.search.points import Point, SearchSpace

IN_FLIGHT = (TrialState.RUNNING, TrialState.WAITING)


@dataclass
class PointRecord:
    """The trials of one point.

    Attributes:
        value: of the first scored trial (see `score`); None where none has a value.
        objectives: of the same trial (see `scores`); None where it has none.
        scored: some trial is COMPLETE or PRUNED.
        in_flight: some trial is RUNNING or WAITING.
        failures: how many trials failed.
    """

    value: float | None = None
    objectives: tuple[float, ...] | None = None
    scored: bool = False
    in_flight: bool = False
    failures: int = 0

    def closed(self, retries: int) -> bool:
        """Whether there is no reason to propose the point: scored, in flight, or failed too often."""
        return self.scored or self.in_flight or self.failures > retries


_NOTHING = PointRecord()


class Ledger:
    """Points of a space with what became of them. Trials outside of the space are passed over."""

    def __init__(self, space: SearchSpace, history: Iterable[FrozenTrial]) -> None:
        self._points: dict[Point, PointRecord] = {}
        for trial in history:
            point = space.find(trial.params)
            if point is not None:
                self._add(point, trial)

    def _add(self, point: Point, trial: FrozenTrial) -> None:
        record = self._points.setdefault(point, PointRecord())
        if trial.state in IN_FLIGHT:
            record.in_flight = True
        elif trial.state == TrialState.FAIL:
            record.failures += 1
        else:
            record.scored = True
            if record.value is None:
                record.value, record.objectives = score(trial), scores(trial)

    def at(self, point: Point | None) -> PointRecord:
        """What is known of a point; an empty record where nothing is."""
        return _NOTHING if point is None else self._points.get(point, _NOTHING)

    def closed(self, retries: int) -> set[Point]:
        """The points that there is no reason to propose."""
        return {point for point, record in self._points.items() if record.closed(retries)}

    @property
    def in_flight(self) -> bool:
        """Whether any point is being evaluated."""
        return any(record.in_flight for record in self._points.values())


def score(trial: FrozenTrial) -> float | None:
    """What the trial teaches of its point: its value where it is finished and has a finite one.

    The value of a raced trial that was stopped is its running mean over the first queries, which compares with no
    other trial's; `ESTIMATE_ATTR` holds what its value would have been, about. A trial that lost more on guarded
    collections than it may is worth less by `PENALTY` times that.
    """
    if trial.state == TrialState.PRUNED and ESTIMATE_ATTR in trial.user_attrs:
        return float(trial.user_attrs[ESTIMATE_ATTR])
    finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    if not finished or trial.values is None or not math.isfinite(trial.values[0]):
        return None
    return float(trial.values[0]) - PENALTY * violation(trial)


def scores(trial: FrozenTrial) -> tuple[float, ...] | None:
    """Like `score`, one for each of several objectives; None of a trial without them."""
    found = trial.user_attrs.get(OBJECTIVES_ATTR)
    if score(trial) is None or not isinstance(found, Mapping):
        return None
    return tuple(float(v) - PENALTY * violation(trial) for v in found.values())


def violation(trial: FrozenTrial) -> float:
    """What the trial lost on guarded collections beyond what it may, 0 where all is well."""
    found = trial.user_attrs.get(EXCESS_ATTR)
    return math.fsum(max(0.0, float(lost)) for lost in found.values()) if isinstance(found, Mapping) else 0.0


def state(trial: FrozenTrial) -> TrialState:
    """The trial's state as a strategy is to see it: one that was stopped with an estimate has a score like others."""
    estimated = trial.state == TrialState.PRUNED and ESTIMATE_ATTR in trial.user_attrs
    return TrialState.COMPLETE if estimated else trial.state
