"""Is a difference between two models more than luck? Paired tests over queries.

Per-query differences are what is tested (Smucker, Allan and Carterette, 2007,
https://doi.org/10.1145/1321440.1321528: the t-test, randomisation and bootstrap agree, sign and Wilcoxon do
not). The tests hold for a comparison decided on beforehand, on queries that chose nothing: never for the best
of many trials on the dev split that chose it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mergesearch.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESAMPLES = 9999
"""Of bootstrap and permutation test: p-values are multiples of 1/10,000."""
DEFAULT_LEVEL = 0.95
"""Of confidence, of intervals."""

_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """How model a differs from model b.

    Attributes:
        mean_difference: mean over queries of a's score minus b's.
        interval: bootstrap interval (BCa) of that mean, of confidence `level`.
        p_ttest: two-sided paired t-test.
        p_permutation: two-sided paired permutation (sign-flip) test.
        n: queries.
        level: 0.95 for a 95% interval.
    """

    mean_difference: float
    interval: tuple[float, float]
    p_ttest: float
    p_permutation: float
    n: int
    level: float = DEFAULT_LEVEL


def compare(
    a: NDArray[np.float64], b: NDArray[np.float64], *, seed: int = 0, level: float = DEFAULT_LEVEL
) -> Comparison:
    """Compare two models by their scores on the same queries in the same order, float64 [n].

    Raises:
        EvaluationError: the arrays differ in length or hold fewer than two queries.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise EvaluationError(
            f"a paired comparison needs two equally long lists of at least 2 query scores, not {a.shape} and {b.shape}."
        )
    from scipy import stats

    differences = a - b
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        # All differ by the same amount: there is no spread to resample, and t is 0/0 or infinite.
        p_ttest, interval = (1.0 if mean == 0 else 0.0), (mean, mean)
    else:
        p_ttest = float(stats.ttest_1samp(differences, 0.0).pvalue)
        resampled = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=level,
            batch=max(1, _BATCH_ELEMENTS // len(differences)),
            random_state=np.random.default_rng(seed),
        )
        interval = (float(resampled.confidence_interval.low), float(resampled.confidence_interval.high))
    permuted = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_ELEMENTS // len(differences)),
        random_state=np.random.default_rng(seed),
    )
    return Comparison(mean, interval, p_ttest, float(permuted.pvalue), len(differences), level)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having made several comparisons (Holm, 1979), in the order given."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(p_values), method="holm")[1]
    return [float(p) for p in adjusted]
