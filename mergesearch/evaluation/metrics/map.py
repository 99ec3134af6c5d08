"""Average precision at a cut-off: trec_eval's `map_cut`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergesearch.evaluation.metrics import measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.judgements import Judgements


@measure("map")
def average_precision(gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:
    """Precision at the rank of each relevant document, summed, over ALL relevant documents.

    Relevant documents below the cut-off count as missed, so the best possible value is below 1 when there are
    more of them than ranks. 0 where nothing is relevant.
    """
    relevant = gains > 0
    precisions = np.cumsum(relevant, axis=1) / np.arange(1.0, gains.shape[1] + 1)
    total = judgements.n_relevant
    scores: NDArray[np.float64] = np.divide(
        (precisions * relevant).sum(axis=1), total, out=np.zeros(len(gains)), where=total > 0
    )
    return scores
