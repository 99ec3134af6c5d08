"""Scores for final tables through ranx, an implementation other than the one that trials are scored with.

ranx is imported on first use: compiling it takes seconds, half a minute the first time ever.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError

_ONE_THREAD = threading.Lock()
"""The default threading layer aborts the process when two threads evaluate at once."""

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Query id to (document id, score), as in `CollectionScores.run`."""


def ranx_scores(run: Run, qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str]) -> dict[str, float]:
    """Mean of each metric over the judged queries; arguments and errors are those of `ranx_per_query`."""
    return {name: float(scores.mean()) for name, scores in ranx_per_query(run, qrels, metrics).items()}


def ranx_per_query(
    run: Run, qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Each metric of every judged query, float64 [Q], in the order of the sorted query ids.

    A judged query that the run lacks counts as 0; queries without judgements are left out. Equal scores are
    ordered by document id, descending, as trec_eval does.

    Args:
        run: a ranking per query, in any order.
        qrels: query id to document id to relevance; queries without relevant documents must be left out, as
            collections do.
        metrics: ranx's names, such as `ndcg@10`, `precision@10`, `recall@100`, `map@100`, `mrr@10`.

    Raises:
        EvaluationError: ranx does not know a metric, or nothing is judged.
    """
    if not qrels:
        raise EvaluationError("there are no judgements to score a run by.")
    names = _Names()
    ranked = {names[query]: _rank_as_score(run.get(query, ()), names) for query in sorted(qrels)}
    judged = {
        names[query]: {
            names[d]: int(g)
            for d, g in sorted(qrels[query].items(), key=lambda judgement: (-judgement[1], judgement[0]))
        }
        for query in sorted(qrels)
    }
    with _ONE_THREAD, warnings.catch_warnings():
        # Compiling ranx makes numba warn about casts inside ranx, in colours and in the name of ranx's files.
        warnings.filterwarnings("ignore", module="numba|ranx")
        warnings.filterwarnings("ignore", message=r"(?s).*unsafe cast from")
        import ranx

        try:
            scores = ranx.evaluate(ranx.Qrels(judged), ranx.Run(ranked), list(metrics), return_mean=False)
        except ValueError as error:
            raise EvaluationError(f"ranx cannot compute {', '.join(metrics)}: {error}") from error
    if not isinstance(scores, dict):
        scores = {metrics[0]: scores}
    return {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}


class _Names(dict[str, str]):
    """Short names of one length for ids, in the order they are asked for.

    ranx compiles its code anew for every length of the longest id of a query: minutes, where ids vary.
    """

    def __missing__(self, name: str) -> str:
        self[name] = f"{len(self):09d}"
        return self[name]


def _rank_as_score(documents: Sequence[tuple[str, float]], names: _Names) -> dict[str, float]:
    """Ties stay in the order ranx finds them in; scores that count down the ranks leave none."""
    ordered = sorted(documents, key=lambda x: (x[1], x[0]), reverse=True)
    # An empty ranking is not representable; a document that nobody judged scores the same 0.
    return {names[doc_id]: float(len(ordered) - rank) for rank, (doc_id, _) in enumerate(ordered)} or {
        names["\0no document"]: 0.0
    }
