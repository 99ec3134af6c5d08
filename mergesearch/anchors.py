"""The anchors of a study that are still to be evaluated."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mergesearch.recipe import MergeRecipe
from mergesearch.search.strategy import SOURCE_ATTR
from mergesearch.study import Study
from mergesearch.study_recipes import Anchor

MOST_ANCHOR_FAILURES = 2
"""So often an anchor may fail, once per process; what made it fail is often mended before the study goes on."""
LABEL_CHARACTERS = 300
"""Of a trial's label; with a coefficient per layer there would be no end of it."""
ANCHOR_ATTR = "anchor_of"
"""Attribute of an anchor's trials: the beginning of its recipe's fingerprint. Names of anchors may be equal."""


class Anchors:
    """The anchors of a study in their order, each until it has a score, may get one, or is given up.

    Args:
        study: whose anchors.
        history: the trials that earlier processes and other coordinators have recorded.
    """

    def __init__(self, study: Study, history: Sequence[FrozenTrial]) -> None:
        self._study = study
        self._left = deque(study.anchors())
        self._measure = None if study.measure is None else identity(study.measure)
        self._failures_before = _failures(history)  # this process

    def next(self, history: Sequence[FrozenTrial]) -> tuple[Anchor, int] | None:
        """The first anchor without a trial that has or may get a score, and its failures; one failure each time."""
        if not self._left:
            return None
        recorded = {t.user_attrs.get(ANCHOR_ATTR) for t in history if t.state != TrialState.FAIL}
        failures = _failures(history)
        while self._left:
            known_by = identity(self._study.anchored(self._left[0]))
            count = failures[known_by]
            tried = 0 if known_by == self._measure else count  # without its score the study cannot go on
            if known_by not in recorded and count == self._failures_before[known_by] and tried < MOST_ANCHOR_FAILURES:
                return self._left[0], count
            self._left.popleft()
        return None


def identity(recipe: MergeRecipe) -> str:
    """What an anchor's trials are known by; half of a fingerprint tells recipes apart as well."""
    return recipe.fingerprint[:32]


def anchor_attrs(anchor: Anchor, recipe: MergeRecipe) -> dict[str, Any]:
    """The attributes of an anchor's trial."""
    name = anchor.name[:LABEL_CHARACTERS]
    attrs = {"label": name, "anchor": name, ANCHOR_ATTR: identity(recipe)}
    return {**attrs, SOURCE_ATTR: anchor.source} if anchor.source else attrs


def _failures(history: Sequence[FrozenTrial]) -> Counter[str]:
    return Counter(str(t.user_attrs.get(ANCHOR_ATTR)) for t in history if t.state == TrialState.FAIL)
