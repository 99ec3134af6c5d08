"""What trials are judged by beside their value: several objectives, and what guarded collections may lose.

A trial's value is always the weighted mean over all dev collections. Where a study names objectives, each is the
weighted mean over its own collections, and what no other merge beats in all of them is the Pareto front. A guarded
collection is one on which a merge may score only so much lower than the template alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.result import CollectionScores

OBJECTIVES_ATTR = "objectives"
"""Attribute of a recorded trial of a study with several objectives: their values by name."""
VALUE_ATTR = "value"
"""Attribute of such a trial: its value, of which Optuna has no column."""
EXCESS_ATTR = "excess"
"""Attribute of a recorded trial of a study with guards: by collection how much more than allowed it lost; negative
where something is left."""
PENALTY = 10.0
"""Of what is lost beyond the allowance, so many times lie between a trial's value and what strategies learn."""


@dataclass(frozen=True)
class Judgement:
    """What a study's objectives and guards say of one trial; empty where it has none.

    Attributes:
        objectives: by name, in the study's order; empty for a single objective, which is the value.
        excess: by guarded collection, what was lost beyond the allowance; none is positive where all is well.
    """

    objectives: Mapping[str, float] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether no guarded collection lost more than it may."""
        return all(lost <= 0 for lost in self.excess.values())


@dataclass(frozen=True)
class Objectives:
    """The objectives and guards of a study.

    Attributes:
        members: collection to objective, in the study file's order; one name for all where there is a single one.
        weights: collection to its weight in the value.
        allowances: guarded collection to how much lower than the template alone a merge may score there.
        template: what guards are measured against.
    """

    members: Mapping[str, str]
    weights: Mapping[str, float]
    allowances: Mapping[str, float] = field(default_factory=dict)
    template: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives, in the order in which their first collections stand."""
        return tuple(dict.fromkeys(self.members.values()))

    @property
    def several(self) -> bool:
        """Whether trials are judged by more than one."""
        return len(self.names) > 1

    def values(self, collections: Sequence[CollectionScores]) -> dict[str, float]:
        """Every objective: the weighted mean over its collections of the mean over queries."""
        found = {}
        for name in self.names:
            own = [(self.weights[c.collection], c.mean) for c in collections if self.members[c.collection] == name]
            found[name] = math.fsum(w * mean for w, mean in own) / math.fsum(w for w, _ in own)
        return found

    def judge(
        self, collections: Sequence[CollectionScores], template: Sequence[CollectionScores] | None = None
    ) -> Judgement:
        """What to record of a trial.

        Args:
            collections: its scores.
            template: those of the template alone; None while they are not known, and guards cannot judge.
        """
        objectives = self.values(collections) if self.several else {}
        return Judgement(objectives, {} if template is None else self.excess(collections, template))

    def excess(self, collections: Sequence[CollectionScores], template: Sequence[CollectionScores]) -> dict[str, float]:
        """By guarded collection, how much more than its allowance was lost against the template alone."""
        had = {c.collection: c.mean for c in template}
        means = {c.collection: c.mean for c in collections}
        return {name: had[name] - means[name] - allowed for name, allowed in self.allowances.items()}

    def shares(self, of_objectives: Sequence[float]) -> tuple[float, ...]:
        """The share of every collection in a mean in which each objective has the share given for it."""
        shares = dict(zip(self.names, of_objectives, strict=True))
        total = dict.fromkeys(self.names, 0.0)
        for name, objective in self.members.items():
            total[objective] += self.weights[name]
        return tuple(shares[o] * self.weights[name] / total[o] for name, o in self.members.items())


def undominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of N points are on the Pareto front: no other is as high in every objective and higher in one.

    Args:
        values: [N, M], maximised.
    """
    as_high = (values[:, None] >= values[None]).all(axis=2)
    higher = (values[:, None] > values[None]).any(axis=2)
    return np.logical_not((as_high & higher).any(axis=0))
