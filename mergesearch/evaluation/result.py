"""What a trial brings back: scores per query and collection, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

QUERIES_ATTR = "n_queries"
"""Attribute of a recorded trial with scores per query: how many. What another program added or ended has none."""
GPU_SECONDS_ATTR = "gpu_seconds"
"""Attribute of a recorded trial: how long workers were held for it, times their GPUs (at least one)."""
IMPORTED_ATTR = "imported"
"""Attribute of a recorded trial that another study evaluated: which trial of which study. Nothing was spent on it."""
FUSION_ATTR = "fusion"
"""Attribute of a recorded trial of a re-ranker: `TrialResult.fusion`."""
ESTIMATE_ATTR = "estimate"
"""Attribute of a recorded trial that was stopped: `TrialResult.estimate`. Its running mean is over the first queries
and fewer documents, so it compares with no value; strategies learn from the estimate instead."""


@dataclass(frozen=True)
class CollectionScores:
    """Scores of one model on one collection.

    Attributes:
        collection: the collection's name.
        metric: for example `ndcg@10`.
        query_ids: the judged queries, in the collection's order.
        scores: one score per query, float64, in [0, 1].
        weight: the collection's share in the trial's value (weights are normalised over collections).
        run: top documents per query id, best first, as (document id, score); kept only on request.
        looks: where the scores were taken in L looks, those after every look but the last: fp32 [L - 1, Q], NaN for
            queries that had not been looked at. What others are raced against; None for a trial that was stopped.
    """

    collection: str
    metric: str
    query_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    weight: float = 1.0
    run: Mapping[str, Sequence[tuple[str, float]]] | None = None
    looks: NDArray[np.float32] | None = None

    @property
    def mean(self) -> float:
        """Mean over queries, as trec_eval reports it."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Look:
    """Where a trial stood after one of its looks.

    Attributes:
        queries: how many had been scored, over all collections.
        mean: their running mean, weighted over collections as a value is.
        tokens: useful tokens encoded so far.
        approximate: the queries had searched fewer documents than those of the final value.
    """

    queries: int
    mean: float
    tokens: int
    approximate: bool = False


@dataclass(frozen=True)
class TrialResult:
    """The outcome of one evaluated recipe.

    Attributes:
        collections: scores per dev collection; of a trial that was stopped, of the queries it was scored on.
        seconds: wall seconds per phase: `merge`, `encode`, `search`, `score`.
        tokens: useful tokens encoded (padding not counted).
        worker: who evaluated it.
        notes: small facts worth keeping, such as a batch that had to be split.
        layer_tokens: useful tokens times the transformer layers that were run for them.
        looks: the looks that a raced trial was scored in; empty for one that was scored at once.
        stopped: the trial was ended after a look because it could not win; its value is the running mean.
        estimate: of a trial that was stopped: what its value would have been, about. The value of the trial that it
            could not beat, and their mean difference over the queries of both.
        stopped_by: the number of that trial.
        embeddings: key of its embeddings in the study's artifact store; empty where none were kept.
        out_of_memory: how often memory ran out on the way; batches were split, or hidden states given up.
        fusion: of a re-ranker, its share λ in the scores of all collections; None where nothing was fused.
    """

    collections: tuple[CollectionScores, ...]
    seconds: Mapping[str, float]
    tokens: int
    worker: str = "local"
    notes: tuple[str, ...] = field(default=())
    layer_tokens: int = 0
    looks: tuple[Look, ...] = ()
    stopped: bool = False
    embeddings: str = ""
    estimate: float | None = None
    stopped_by: int | None = None
    out_of_memory: int = 0
    fusion: float | None = None

    @property
    def value(self) -> float:
        """The weighted mean over collections of the mean over queries."""
        total = math.fsum(c.weight for c in self.collections)
        return math.fsum(c.weight * c.mean for c in self.collections) / total
