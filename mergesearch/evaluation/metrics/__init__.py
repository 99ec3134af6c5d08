"""Effectiveness measures, one file each; `parse_metric("ndcg@10")` finds them by name.

A measure is a function from ranked gains to one score per query, registered by `@measure(name)`. Dropping a
file into this folder is all it takes; tests/conformance/test_metrics.py runs over the registry.
Definitions and tie-breaking are trec_eval's: linear gain, relevant means judged above zero.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError, unknown
from mergesearch.evaluation.judgements import Judgements

Measure = Callable[[NDArray[np.float64], Judgements], NDArray[np.float64]]
"""From gains of the best documents down to the cut-off K, float64 [Q, K], to scores, float64 [Q]."""

MEASURES: dict[str, Measure] = {}


def measure(name: str) -> Callable[[Measure], Measure]:
    """Register a measure under the name that stands before the `@` of a metric."""

    def register(function: Measure) -> Measure:
        MEASURES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Metric:
    """A measure at a cut-off.

    Attributes:
        measure: a name in the registry, such as `ndcg`.
        depth: how many documents of a ranking it looks at.
    """

    measure: str
    depth: int

    @property
    def name(self) -> str:
        """For example `ndcg@10`."""
        return f"{self.measure}@{self.depth}"

    def score(self, gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:
        """One score per query, float64 [Q].

        Args:
            gains: `judgements.gains` of the ranking, float64 [Q, K]; K may differ from `depth`.
            judgements: of the same Q queries.
        """
        cut = np.zeros((len(gains), self.depth))
        cut[:, : gains.shape[1]] = gains[:, : self.depth]
        return MEASURES[self.measure](cut, judgements)


def parse_metric(name: str) -> Metric:
    """The metric that `name` (`ndcg@10`, `map@100`, …) stands for.

    Raises:
        EvaluationError: the name is not of the form `measure@depth`, or the measure is unknown.
    """
    found = re.fullmatch(r"(.+)@([1-9]\d*)", name.strip().lower())
    if found is None:
        raise EvaluationError(
            f"metric {name!r} is not of the form measure@depth, such as ndcg@10. Known measures: "
            f"{', '.join(sorted(MEASURES))}."
        )
    if found[1] not in MEASURES:
        raise EvaluationError(unknown("measure", found[1], MEASURES))
    return Metric(found[1], int(found[2]))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
