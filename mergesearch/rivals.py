"""The recorded trials that a new one is raced against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from mergesearch.evaluation.racing import Rival, as_rival, drift
from mergesearch.evaluation.result import TrialResult
from mergesearch.storage.reader import StudyReader


@dataclass(frozen=True)
class _Known:
    """A complete trial as the database has it."""

    number: int
    value: float
    looks: tuple[NDArray[np.float32], ...]
    drift: NDArray[np.float64]


class Rivals:
    """The best complete trials of a study, with their scores after every look.

    Args:
        store: the study's records.
        count: how many of them a trial is raced against.
    """

    def __init__(self, store: StudyReader, count: int) -> None:
        self._store = store
        self._count = count
        self._read: dict[int, _Known | None] = {}

    def best(self, history: Sequence[FrozenTrial]) -> tuple[Rival, ...]:
        """The best of a history first; fewer than `count` while there are not so many. Each recipe counts once."""
        once: dict[str, _Known] = {}
        for trial in history:
            recipe = trial.user_attrs.get("recipe")  # missing in trials that other programs added
            if trial.state == TrialState.COMPLETE and recipe is not None and recipe not in once:
                known = self._known(trial.number)
                if known is not None:
                    once[recipe] = known
        ranked = sorted(once.values(), key=lambda known: (-known.value, known.number))
        return tuple(
            as_rival(k.number, k.value, k.looks, k.drift, [other.drift for other in ranked if other is not k])
            for k in ranked[: self._count]
        )

    def _known(self, number: int) -> _Known | None:
        """None for a trial that was not scored in looks: another program ended it."""
        if number not in self._read:
            result = self._store.result(number)
            self._read[number] = None if result is None else _in_looks(number, result)
        return self._read[number]


def _in_looks(number: int, result: TrialResult) -> _Known | None:
    looks = tuple(c.looks for c in result.collections if c.looks is not None)
    if len(looks) < len(result.collections):
        return None
    moved = drift(looks, [c.scores for c in result.collections], [c.weight for c in result.collections])
    return _Known(number, result.value, looks, moved)
