"""Precision at a cut-off: trec_eval's `P`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergesearch.evaluation.metrics import measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergesearch.evaluation.judgements import Judgements


@measure("precision")
def precision(gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:  # noqa: ARG001
    """Share of the K ranks that hold a relevant document; ranks that a ranking lacks hold none."""
    share: NDArray[np.float64] = (gains > 0).mean(axis=1)
    return share
