"""What final tables show, and how the winner is tested against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.evaluation.result import CollectionScores
from mergesearch.evaluation.significance import DEFAULT_LEVEL, Comparison, compare, holm

FINAL_METRICS = ("ndcg@10", "recall@100", "mrr@10", "map@100")
"""What final tables show beside the study's own metric."""
RUN_DEPTH = 100
"""Documents per query that these metrics look at; more, where a metric that is asked for does."""


@dataclass(frozen=True)
class Reported:
    """What is shown and tested.

    Attributes:
        metrics: in their order; each is tested. None: the study's and `FINAL_METRICS`, of which the study's is tested.
        correction: of p-values, over all that the winner is compared with on a collection by a metric.
        level: of confidence: of the intervals (0.95 where none is given), and of the stars: where a level is given,
            corrected p-values below 1 − level have one.

    Raises:
        EvaluationError: a metric is none, or the level is no share between 0 and 1.
    """

    metrics: tuple[str, ...] = ()
    correction: Literal["holm", "bonferroni"] = "holm"
    level: float | None = None

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse_metric(name)
        if self.level is not None and not 0 < self.level < 1:
            raise EvaluationError(
                f"a level of confidence lies between 0 and 1, such as 0.95 or 0.99, not {self.level:g}"
            )

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return DEFAULT_LEVEL if self.level is None else self.level

    @property
    def depth(self) -> int:
        """Documents per query that metrics look at."""
        return max((RUN_DEPTH, *(parse_metric(name).depth for name in self.metrics)))

    def shown(self, own: str) -> tuple[str, ...]:
        """The metrics of the table of scores, `own` being the study's."""
        return tuple(dict.fromkeys(self.metrics or (own, *FINAL_METRICS)))

    def tested(self, own: str) -> tuple[str, ...]:
        """The metrics by which the winner is compared."""
        return tuple(dict.fromkeys(self.metrics or (own,)))


USUAL = Reported()
"""What is shown and tested where nothing else is asked for."""


@dataclass(frozen=True)
class PairedTest:
    """The winner against one other model on one collection by one metric.

    `p_holm` and `p_bonferroni` are corrected over the `tests` that were made of the winner there.
    """

    collection: str
    against: str
    comparison: Comparison
    p_holm: float
    metric: str
    tests: int

    @property
    def p_bonferroni(self) -> float:
        """The p-value of the t-test times the number of tests, at most 1."""
        return min(1.0, self.tests * self.comparison.p_ttest)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        c = self.comparison
        return {
            "collection": self.collection,
            "metric": self.metric,
            "against": self.against,
            "difference": c.mean_difference,
            "interval": list(c.interval),
            "p_ttest": c.p_ttest,
            "p_permutation": c.p_permutation,
            "p_holm": self.p_holm,
            "p_bonferroni": self.p_bonferroni,
            "level": c.level,
            "queries": c.n,
        }


def paired_tests(
    winner: CollectionScores, others: Mapping[str, CollectionScores], level: float = DEFAULT_LEVEL
) -> tuple[PairedTest, ...]:
    """The winner against other models by label on one collection, corrected over them; none for a single query."""
    if len(winner.query_ids) < 2:
        return ()
    comparisons = {label: compare(winner.scores, other.scores, level=level) for label, other in others.items()}
    corrected = holm([c.p_ttest for c in comparisons.values()])
    return tuple(
        PairedTest(winner.collection, label, c, p, winner.metric, len(comparisons))
        for (label, c), p in zip(comparisons.items(), corrected, strict=True)
    )


def shown_p(p: float) -> str:
    """A p-value with four decimals; none is shown as 0, which no test can find."""
    return f"{p:.4f}" if p >= 0.0001 else "<.0001"
