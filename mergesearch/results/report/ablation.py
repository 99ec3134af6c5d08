"""Which source was not needed? The best merges with and without each, from recorded trials; nothing is encoded.

Both are the highest of several, and the highest of more merges is luckier: what is luck in either is estimated as for
the choice (see `mergesearch.evaluation.luck`) and taken off before it is judged whether a source gained anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import MergeError
from mergesearch.evaluation.luck import Luck
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import luck_of
from mergesearch.results.distance import factors
from mergesearch.results.view import StudyView, TrialView
from mergesearch.study import Study


@dataclass(frozen=True)
class Ablation:
    """What the dev queries say of one source.

    Attributes:
        source: its name.
        beside, without: the highest trial that it has a part in, and that it has none in; None where no such trial has
            scores.
        n_beside, n_without: how many trials each was picked from.
        gain: what the first scores above the second; None unless both are there.
        luck: how much of `gain` is luck on average; negative where more of it is in the second.
        interval: 95% paired bootstrap interval of `gain` less `luck`.
    """

    source: str
    beside: TrialView | None
    without: TrialView | None
    n_beside: int
    n_without: int
    gain: float | None = None
    luck: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.gain is None or self.luck is None or self.interval is None:
            return "not tried without it" if self.without is None else "never merged"
        if self.gain <= self.luck:
            return "not needed"
        return "needed" if self.interval[0] > 0 else "perhaps not needed"


def ablations(view: StudyView) -> tuple[Ablation, ...]:
    """Every source that has weights; none of a method that has no weights, or before any trial has scores."""
    parts = [(t, found) for t in view.ranked if t.recipe is not None and (found := taking_part(view.study, t.recipe))]
    if not parts:
        return ()
    trials = [t for t, _ in parts]
    luck = luck_of([t.result.collections for t in trials if t.result is not None])
    takes_part = {source: np.array([names[source] for _, names in parts]) for source in view.study.merged_sources}
    return tuple(_compared(source, trials, sides, luck) for source, sides in takes_part.items())


def taking_part(study: Study, recipe: MergeRecipe) -> dict[str, bool]:
    """Whether each source's tensors have any weight in a merged group; empty where the method has no weights."""
    merged = [g for g in recipe.groups if g.copy_from is None]
    weights: list[Mapping[str, float]]
    if "linear_map" in study.method.properties:
        try:
            weights = list(factors(study.method, recipe).values())
        except MergeError:  # weights that sum to zero
            return {}
    else:
        weights = [w for g in merged if isinstance(w := g.coefficients.get("weight"), Mapping)]
    if not weights:
        return {}
    return {source: any(w.get(source, 0.0) for w in weights) for source in study.merged_sources}


def _compared(source: str, trials: Sequence[TrialView], takes_part: NDArray[np.bool_], luck: Luck) -> Ablation:
    sides = [np.flatnonzero(side) for side in (takes_part, ~takes_part)]
    best = [int(side[luck.values_T[side].argmax()]) if len(side) else None for side in sides]
    beside, without = (None if i is None else trials[i] for i in best)
    n_beside, n_without = map(len, sides)
    if best[0] is None or best[1] is None:
        return Ablation(source, beside, without, n_beside, n_without)
    lucky = [luck.optimism(lambda values, s=side: s[values[:, s].argmax(axis=1)]) for side in sides]  # type: ignore[misc]
    in_gain = lucky[0] - lucky[1]
    low, high = luck.interval(best[0], best[1])
    gain = float(luck.values_T[best[0]] - luck.values_T[best[1]])
    return Ablation(source, beside, without, n_beside, n_without, gain, in_gain, (low - in_gain, high - in_gain))
