"""A ranking that somebody has made already, in a file of TREC's format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.first_stages.registry import Candidates, FirstStage, first_stage
from mergesearch.evaluation.formats.builder import CollectionBuilder
from mergesearch.evaluation.formats.files import resolve, text_lines
from mergesearch.evaluation.search import own_documents
from mergesearch.sources.checkpoint import file_hash

if TYPE_CHECKING:
    from mergesearch.evaluation.collection import Collection


@first_stage("run", "a run file in TREC's format")
class RunFile(FirstStage):
    """The best documents of a run (query, Q0, document, rank, score, tag) by their scores, whatever their ranks.

    Queries that the collection does not judge are passed over, and so are documents beyond a collection's candidate
    lists.
    """

    file: str
    """The file; `{collection}` and `{split}` stand for the collection's name and split. It may be compressed (.gz)."""

    unknown_ids: Literal["error", "drop"] = "error"
    """What to do with documents that the corpus lacks. `drop` leaves them out with a warning, as for a collection whose
    corpus is a pool."""

    def identity(self, collection: Collection, relative_to: Path) -> dict[str, Any]:
        """See the base class."""
        try:
            content = file_hash(self._path(collection, relative_to))
        except OSError as error:
            message = f"the run cannot be read: {error.strerror}"
            raise CollectionError([Problem(message, str(self._path(collection, relative_to)))]) from None
        return {"content": content, "unknown_ids": self.unknown_ids}

    def rank(self, collection: Collection, depth: int, *, relative_to: Path, device: str) -> Candidates:  # noqa: ARG002
        """See the base class."""
        path = self._path(collection, relative_to)
        run = _read(path, set(collection.judged), collection)
        row_of = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
        unknown = [(q, d) for q, found in run.items() for d in found if d not in row_of]
        if unknown and self.unknown_ids == "error":
            query_id, doc_id = unknown[0]
            message = (
                f"{len(unknown):,} of its {sum(map(len, run.values())):,} entries name documents that are not among "
                f"the {len(row_of):,} of the corpus, first: {doc_id!r} of query {query_id!r}. Take the run of this "
                "corpus, or set `unknown_ids: drop` (a pool lacks most documents)"
            )
            raise CollectionError([Problem(message, str(path))])
        barred = own_documents(collection)
        rows, scores = [], []
        for query, query_id in enumerate(collection.judged):
            listed = row_of.keys() if collection.candidates is None else row_of.keys() & collection.candidates[query_id]
            own = -1 if barred is None else int(barred[query])
            kept = ((score, d) for d, score in run.get(query_id, {}).items() if d in listed and row_of[d] != own)
            best = sorted(kept, reverse=True)[:depth]
            rows.append(np.array([row_of[d] for _, d in best], dtype=np.int64))
            scores.append(np.array([score for score, _ in best], dtype=np.float64))
        warnings: tuple[str, ...] = ()
        if unknown:
            warnings = (
                f"{len(unknown):,} entries of the run name documents that the corpus lacks, first: {unknown[0][1]!r}",
            )
        return Candidates.from_lists(rows, scores, warnings)

    def _path(self, collection: Collection, relative_to: Path) -> Path:
        name = self.file.replace("{collection}", collection.name).replace("{split}", collection.split)
        return resolve(name, relative_to)


def _read(path: Path, wanted: set[str], collection: Collection) -> dict[str, dict[str, float]]:
    """Query id to document id to score, of the queries that are wanted.

    Raises:
        CollectionError: listing what is wrong with the file.
    """
    builder = CollectionBuilder(collection.name, collection.split)
    run: dict[str, dict[str, float]] = {}
    for place, line in text_lines(path, builder):
        cells = line.split()
        score = _number(cells[4]) if len(cells) == 6 else math.nan
        if not math.isfinite(score):
            message = f"expected query, Q0, document, rank, score (a number), tag; found {line[:60]!r}"
            builder.error("malformed run lines", message, place)
        elif cells[0] in wanted:
            found = run.setdefault(cells[0], {})
            if cells[2] in found:
                message = f"query {cells[0]!r} ranks document {cells[2]!r} twice"
                builder.error("repeated documents", message, place)
            found[cells[2]] = score
    if builder.problems():
        raise CollectionError(builder.problems(), f"the run for collection {collection.name!r} cannot be used:")
    return run


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
