"""Scores of many rankings of one query's documents at once.

Notation: C rankings, M documents, K ranks.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import Metric

Array = NDArray[np.float64]


def judgements_of(judgements: Judgements, query: int) -> Judgements:
    """The judgements of one query."""
    n = judgements.n_documents
    low, high = np.searchsorted(judgements.keys, [query * n, (query + 1) * n])
    return Judgements(
        judgements.query_ids[query : query + 1],
        n,
        judgements.ideal[query : query + 1],
        judgements.n_relevant[query : query + 1],
        judgements.keys[low:high] - query * n,
        judgements.key_gains[low:high],
    )


def score_columns(
    metric: Metric, judgements: Judgements, rows: NDArray[np.int64], similarity_MC: NDArray[np.floating]
) -> Array:
    """Scores [C] of C rankings of one query's documents.

    Only the ranks of relevant documents are worked out: the others are counted and never ordered.

    Args:
        metric: what is measured.
        judgements: of the query alone.
        rows: corpus positions of the documents, [M]; of documents that are equally similar the first comes first.
        similarity_MC: what each ranking goes by, the highest first, [M, C].
    """
    n_documents, n_candidates = similarity_MC.shape
    found = judgements.gains(rows[None])[0]
    gains_CK = np.zeros((n_candidates, metric.depth))
    counter = np.uint8 if n_documents < 256 else np.int32
    for document in np.flatnonzero(found):
        similarity_C = similarity_MC[document]
        ranks = (similarity_MC[:document] >= similarity_C).sum(axis=0, dtype=counter)
        ranks += (similarity_MC[document:] > similarity_C).sum(axis=0, dtype=counter)
        shown = np.flatnonzero(ranks < metric.depth)
        gains_CK[shown, ranks[shown]] = found[document]
    times = dataclasses.replace(
        judgements,
        query_ids=judgements.query_ids * n_candidates,
        ideal=np.broadcast_to(judgements.ideal, (n_candidates, judgements.ideal.shape[1])),
        n_relevant=np.broadcast_to(judgements.n_relevant, n_candidates),
    )
    return metric.score(gains_CK, times)
