"""Recall at a cut-off: trec_eval's `recall`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergesearch.evaluation.metrics import measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.judgements import Judgements


@measure("recall")
def recall(gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:
    """Share of the relevant documents that are among the K best; 0 where nothing is relevant."""
    found = (gains > 0).sum(axis=1)
    total = judgements.n_relevant
    scores: NDArray[np.float64] = np.divide(found, total, out=np.zeros(len(gains)), where=total > 0)
    return scores
