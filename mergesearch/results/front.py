"""The Pareto front of a study with several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergesearch.evaluation.objectives import undominated


@dataclass(frozen=True)
class FrontPoint:
    """A trial on the front, with its value of every objective by name (selection scores)."""

    number: int
    label: str
    objectives: Mapping[str, float]


def pareto_front(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other beats in every objective, by the first objective, highest first; of equal ones the first."""
    values_NM = np.array([list(p.objectives.values()) for p in points], dtype=np.float64)
    once: dict[tuple[float, ...], FrontPoint] = {}
    for point, on_front in zip(points, undominated(values_NM), strict=True):
        if on_front:
            once.setdefault(tuple(point.objectives.values()), point)
    return tuple(once[values] for values in sorted(once, reverse=True))


def front_table(front: Sequence[FrontPoint]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headers and rows, for people."""
    names = list(front[0].objectives) if front else []
    rows = [(str(p.number), *(f"{p.objectives[n]:.4f}" for n in names), p.label) for p in front]
    return ["trial", *names, "merge"], rows
