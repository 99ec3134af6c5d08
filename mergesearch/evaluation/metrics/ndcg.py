"""Normalised discounted cumulative gain with linear gain.

Järvelin and Kekäläinen, 2002, https://doi.org/10.1145/582415.582418. trec_eval's `ndcg_cut`: the gain is the
judgement itself (not 2^judgement - 1) and the discount 1 / log2(rank + 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergesearch.evaluation.metrics import measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.judgements import Judgements


@measure("ndcg")
def ndcg(gains: NDArray[np.float64], judgements: Judgements) -> NDArray[np.float64]:
    """DCG of the ranking over DCG of the best possible one; 0 where nothing is relevant."""
    ideal = judgements.ideal[:, : gains.shape[1]]
    best = ideal @ _discounts(ideal.shape[1])
    return np.divide(gains @ _discounts(gains.shape[1]), best, out=np.zeros(len(gains)), where=best > 0)


def _discounts(depth: int) -> NDArray[np.float64]:
    discounts: NDArray[np.float64] = 1.0 / np.log2(np.arange(2.0, depth + 2))
    return discounts
