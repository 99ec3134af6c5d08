"""Candidates of a collection's queries, found once and shared by all trials, workers and studies.

They are kept in the cache by what decides them: the collection's content, the depth, and what the first stage says of
itself (parameters, content of files and models, versions of libraries).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.first_stages import Candidates, open_first_stage
from mergesearch.evaluation.search import order_by_id
from mergesearch.sources.cached import cached

if TYPE_CHECKING:
    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.rerank_settings import FirstStageSpec

__all__ = ["Candidates", "find_candidates", "first_stage_identity"]

_FORM = 1
"""Of the cached file."""


def first_stage_identity(spec: FirstStageSpec, collection: Collection) -> dict[str, Any]:
    """What decides candidates beside the collection, for the study's record; plain JSON types, no paths.

    Raises:
        CollectionError: the kind or an option is unknown, or what it needs is not there.
    """
    stage = open_first_stage(spec.kind, spec.options)
    return {"kind": spec.kind, "depth": spec.depth, **stage.identity(collection, spec.relative_to)}


def find_candidates(spec: FirstStageSpec, collection: Collection, *, device: str = "cpu") -> Candidates:
    """Candidates of the collection's judged queries, from the cache or worked out now.

    Processes that want the same at the same time may all work it out; nobody ever reads half a file.

    Args:
        spec: the first stage.
        collection: what is searched, as it is scored: its pool, its candidate lists.
        device: a torch device, for first stages that compute on one.

    Raises:
        CollectionError: the kind or an option is unknown, what it needs is not there, or it finds nothing at all.
    """
    key = {
        "form": _FORM,
        "collection": collection.content_hash,
        "first_stage": first_stage_identity(spec, collection),
    }

    def build(folder: Path) -> None:
        stage = open_first_stage(spec.kind, spec.options)
        found = stage.rank(collection, spec.depth, relative_to=spec.relative_to, device=device)
        folder.mkdir()
        _write(folder / "candidates.npz", _checked(found, collection), collection)

    folder = cached("first-stage", key, build)
    try:
        return _read(folder / "candidates.npz", collection)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):  # damaged: it can be made again
        shutil.rmtree(folder, ignore_errors=True)
        return _read(cached("first-stage", key, build) / "candidates.npz", collection)


def _checked(found: Candidates, collection: Collection) -> Candidates:
    """With a warning of the queries that have no candidates."""
    judged = collection.judged
    without = np.flatnonzero((found.rows < 0).all(axis=1))
    if len(without) == len(judged):
        message = f"the first stage finds no candidate for any of its {len(judged):,} queries"
        raise CollectionError([Problem(message, f"collection {collection.name!r}")])
    warnings = found.warnings
    if len(without):
        first = judged[without[0]]
        warning = f"{len(without):,} of {len(judged):,} queries have no candidates and score 0, first: {first!r}"
        warnings = (*warnings, warning)
    return Candidates(found.rows, found.scores, warnings)


def _write(file: Path, found: Candidates, collection: Collection) -> None:
    """Queries and documents by their places in the order of ids: equal content may come in another order."""
    by_id = order_by_id(collection.doc_ids)
    place_of = np.empty(len(by_id) + 1, dtype=np.int64)
    place_of[by_id] = np.arange(len(by_id))
    place_of[-1] = -1  # of no document
    queries = order_by_id(collection.judged)
    places, warnings = place_of[found.rows[queries]], np.array(found.warnings, dtype=str)
    if found.scores is None:
        np.savez(file, places=places, warnings=warnings)
    else:
        np.savez(file, places=places, warnings=warnings, scores=found.scores[queries])


def _read(file: Path, collection: Collection) -> Candidates:
    row_of = np.append(order_by_id(collection.doc_ids), -1)
    queries = np.argsort(order_by_id(collection.judged))
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        rows = row_of[arrays["places"][queries]]
        scores = arrays["scores"][queries] if "scores" in arrays else None
        return Candidates(rows, scores, tuple(arrays["warnings"].tolist()))
