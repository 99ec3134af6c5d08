"""Per-query scores to rows and back: little-endian float64, to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.result import CollectionScores, Look, TrialResult
from mergesearch.storage.tables import QuerySetRow, ScoreRow, TrialRow


class ScoreColumns(TypedDict):
    """The columns that dev scores and test readings share."""

    collection: str
    metric: str
    weight: float
    query_set_id: int
    scores: bytes


class QuerySets:
    """Lists of query ids, stored once each; remembers those it has seen."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._ids: dict[str, int] = {}
        self._lists: dict[int, tuple[str, ...]] = {}

    def put(self, query_ids: Sequence[str]) -> int:
        """The row's id of this list, written in a transaction of its own when it is new."""
        digest = hashlib.sha256(json.dumps(list(query_ids)).encode()).hexdigest()
        if digest not in self._ids:
            self._ids[digest] = self._find(digest) or self._insert(digest, query_ids)
        return self._ids[digest]

    def _insert(self, digest: str, query_ids: Sequence[str]) -> int:
        row = QuerySetRow(digest=digest, query_ids=list(query_ids))
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
                session.flush()
                return row.id
        except IntegrityError:  # somebody else was faster, with the same list
            found = self._find(digest)
            if found is None:
                raise
            return found

    def _find(self, digest: str) -> int | None:
        with Session(self._engine) as session:
            return session.scalar(sa.select(QuerySetRow.id).where(QuerySetRow.digest == digest))

    def get(self, row_id: int) -> tuple[str, ...]:
        """The query ids of a row."""
        if row_id not in self._lists:
            with Session(self._engine) as session:
                self._lists[row_id] = tuple(session.get_one(QuerySetRow, row_id).query_ids)
        return self._lists[row_id]

    def columns(self, scores: CollectionScores) -> ScoreColumns:
        """What a row holds of one collection's scores."""
        return {
            "collection": scores.collection,
            "metric": scores.metric,
            "weight": float(scores.weight),
            "query_set_id": self.put(scores.query_ids),
            "scores": pack(scores.scores),
        }

    def collection_scores(self, row: Any) -> CollectionScores:
        """The scores of a row with `ScoreColumns`."""
        return CollectionScores(
            collection=row.collection,
            metric=row.metric,
            query_ids=self.get(row.query_set_id),
            scores=unpack(row.scores),
            weight=row.weight,
            looks=unpack_looks(row.looks, row.scores) if isinstance(row, ScoreRow) else None,
        )

    def result(self, trial: TrialRow, rows: Sequence[ScoreRow]) -> TrialResult:
        """What a completed trial brought back."""
        ordered = sorted(rows, key=lambda row: row.position)
        return TrialResult(
            collections=tuple(self.collection_scores(row) for row in ordered),
            seconds=dict(trial.seconds or {}),
            tokens=trial.tokens or 0,
            worker=trial.worker or "",
            notes=tuple(trial.notes or ()),
            layer_tokens=trial.layer_tokens or 0,
            looks=tuple(Look(int(n), mean, int(tokens), bool(rough)) for n, mean, tokens, rough in trial.looks or ()),
            stopped=trial.outcome == "pruned",
            embeddings=trial.embeddings or "",
            estimate=trial.estimate,
            stopped_by=trial.stopped_by,
            fusion=trial.fusion,
        )


def pack(scores: NDArray[np.float64]) -> bytes:
    """Scores as little-endian float64 bytes."""
    return np.ascontiguousarray(scores, dtype="<f8").tobytes()


def unpack(data: bytes) -> NDArray[np.float64]:
    """What `pack` wrote, as an array of its own."""
    return np.frombuffer(data, dtype="<f8").astype(np.float64)


def pack_looks(looks: NDArray[np.float32] | None) -> bytes | None:
    """Scores after every look but the last, [L - 1, Q], as little-endian float32 bytes."""
    return None if looks is None else np.ascontiguousarray(looks, dtype="<f4").tobytes()


def unpack_looks(data: bytes | None, scores: bytes) -> NDArray[np.float32] | None:
    """What `pack_looks` wrote, beside the packed scores of the same queries."""
    return None if data is None else np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(-1, len(scores) // 8)


def check(result: TrialResult) -> float:
    """The result's value.

    Raises:
        EvaluationError: no collections or queries, a score that is NaN or infinite, counts that differ, a
            collection twice, or weights that no mean can be made with.
    """
    if not result.collections:
        raise EvaluationError("a trial came back without scores of any collection; record it as failed.")
    keys = [(c.collection, c.metric) for c in result.collections]
    if len(set(keys)) < len(keys):
        raise EvaluationError(f"a trial came back with two sets of scores of one collection: {keys}.")
    for scores in result.collections:
        where = f"{scores.metric} on {scores.collection!r}"
        if len(scores.query_ids) != len(scores.scores) or len(scores.scores) == 0:
            raise EvaluationError(f"{where}: {len(scores.scores)} scores for {len(scores.query_ids)} queries.")
        bad = [q for q, s in zip(scores.query_ids, scores.scores, strict=True) if not np.isfinite(s)]
        if bad:
            raise EvaluationError(
                f"{where} is NaN or infinite for {len(bad)} of {len(scores.query_ids)} queries "
                f"(the first: {bad[0]!r}). That is a failed trial, not a score."
            )
    weights = [c.weight for c in result.collections]
    if not all(0 <= w < np.inf for w in weights) or not any(weights):
        raise EvaluationError(f"collection weights must be 0 or more and not all 0, found {weights}.")
    return result.value
