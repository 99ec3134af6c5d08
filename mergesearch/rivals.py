"""The recorded trials that a new one is raced against."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from mergesearch.evaluation.racing import Rival
from mergesearch.search.ledger import violation
from mergesearch.storage.reader import StudyReader


class Rivals:
    """The best complete trials of a study, with their scores after every look.

    Args:
        store: the study's records.
        count: how many of them a trial is raced against.
    """

    def __init__(self, store: StudyReader, count: int) -> None:
        self._store = store
        self._count = count
        self._read: dict[int, Rival | None] = {}

    def best(self, history: Sequence[FrozenTrial]) -> tuple[Rival, ...]:
        """The best of a history first, each recipe once; fewer than `count` while there are not so many."""
        complete = [t for t in history if t.state == TrialState.COMPLETE and t.value is not None and not violation(t)]
        found: dict[str, Rival] = {}
        for trial in sorted(complete, key=lambda t: (-(t.value or 0.0), t.number)):
            if len(found) == self._count:
                break
            recipe = trial.user_attrs.get("recipe")  # missing in trials that other programs added
            if recipe is not None and recipe not in found:
                rival = self._rival(trial.number)
                if rival is not None:
                    found[recipe] = rival
        return tuple(found.values())

    def _rival(self, number: int) -> Rival | None:
        """None for a trial that was not scored in looks: another program ended it."""
        if number not in self._read:
            result = self._store.result(number)
            looks = tuple(c.looks for c in result.collections if c.looks is not None) if result else ()
            whole = result is not None and len(looks) == len(result.collections)
            self._read[number] = Rival(number, result.value, looks) if result and whole else None
        return self._read[number]
