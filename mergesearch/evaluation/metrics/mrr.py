"""Reciprocal rank at a cut-off: trec_eval's `recip_rank` on a ranking cut there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergesearch.evaluation.metrics import measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.judgements import Judgements


@measure("mrr")
def reciprocal_rank(gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:  # noqa: ARG001
    """One over the rank of the first relevant document; 0 where there is none among the K best."""
    relevant = gains > 0
    return np.where(relevant.any(axis=1), 1.0 / (relevant.argmax(axis=1) + 1), 0.0)
