"""A bank of merges: the points of a study file, all scored on every dev and test query, for simulated studies.

    python -m tests.benchmarks.bank STUDY.yaml --folder BANK [--points 28] [--documents 1000] [--embeddings]

What is done with the merges afterwards (resampled dev splits, races, choices) costs no encoding. The points are what
the study enqueues (sources alone, uniform average) and then either a Sobol sequence over its space or its whole grid;
the study's own strategy, budget and query sample are not looked at. Queries of dev and test search one shared pool:
judged documents, the highest grades first, in turns over the queries until `--documents` are reached, then documents
drawn by hash. Scores on it are for comparing merges only. One `.npz` per merge, under a key of everything its scores
depend on: an interrupted bank goes on, a changed study file adds to the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import qmc

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.search import TopK
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.results.distance import Distances
from mergesearch.study import Study
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluatorSpec
from mergesearch.workers.opening import open_merger

INDEX = "bank.json"
CONSOLE = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Merge:
    """One merge of a bank; `distance` and `nearest` are those of `Distances`, `point` is None off the space."""

    label: str
    key: str
    distance: float
    nearest: str | None
    point: dict[str, float] | None


@dataclass(frozen=True)
class Bank:
    """T merges with their scores: `dev` and `test` are float64 [T, queries]."""

    name: str
    merges: tuple[Merge, ...]
    dev: NDArray[np.float64]
    test: NDArray[np.float64]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Bank:
        """The merges of a folder's index that have been scored."""
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        merges = [Merge(**m) for m in index["merges"] if (folder / f"{m['key']}.npz").is_file()]
        scores = []
        for merge in merges:
            with np.load(folder / f"{merge.key}.npz") as file:
                scores.append((file["dev"], file["test"]))
        dev, test = (np.stack(rows) for rows in zip(*scores, strict=True))
        return cls(index["name"], tuple(merges), dev, test, folder)

    def embeddings(self, merge: Merge) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Of the queries (dev, then test) and of the documents, float16 [Q, E] and [N, E], where they were kept."""
        with np.load(self.folder / f"{merge.key}.npz") as file:
            return file["queries"], file["documents"]


def points(study: Study, n: int | None) -> list[tuple[str, MergeRecipe, dict[str, float] | None]]:
    """Labels, recipes and points: what the study enqueues, then `n` Sobol points; None for the whole grid."""
    found = [(a.name, study.recipe_of(a.coefficients), a.params and dict(a.params)) for a in study.anchors()]
    if n is None:
        params = list(study.space.grid())
    else:
        free = study.space.dimensions
        units = qmc.Sobol(len(free), scramble=True, seed=study.parsed.content.seed).random(n)
        params = [{d.name: d.from_unit(u) for d, u in zip(free, row, strict=True)} for row in units]
    found += [(study.space.label(p), study.recipe(p), p) for p in params]
    once: dict[str, tuple[str, MergeRecipe, dict[str, float] | None]] = {}
    for label, recipe, point in found:
        once.setdefault(recipe.fingerprint, (label, recipe, point))
    return list(once.values())


def shared_pool(dev: CollectionSpec, test: CollectionSpec, n_documents: int) -> tuple[Collection, int]:
    """All dev and test queries over one pool of about `n_documents`, and how many of the queries are dev queries."""
    first, second = (replace(spec, queries=None, pool_negatives=None).load() for spec in (dev, test))
    both = replace(
        first,
        split="dev and test",
        query_ids=first.query_ids + second.query_ids,
        query_texts=first.query_texts + second.query_texts,
        qrels=first.qrels | second.qrels,
    )
    ranked = [sorted(g, key=lambda d, g=g: (-g[d], _hash(d))) for g in both.qrels.values()]
    turns = (d for turn in zip_longest(*ranked) for d in turn if d is not None)
    kept = list(dict.fromkeys([*turns, *sorted(both.doc_ids, key=_hash)]))[:n_documents]
    pooled = both.with_documents(kept)  # queries that lose all their documents are not scored
    return pooled, sum(bool(pooled.qrels[q]) for q in first.query_ids)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Filler:
    """Scores merges on the shared pool; the resident model is overwritten by every one of them."""

    def __init__(self, spec: EvaluatorSpec, collection: Collection, n_dev: int, *, keep: bool) -> None:
        torch.set_num_threads(spec.threads)
        encoder, self._merger = open_merger(spec)
        prompts = spec.collections[0].prompts
        settings = spec.evaluation
        self._retrieval = RetrievalEvaluator(
            encoder,
            [WeightedCollection(collection, 1.0, prompts.get("query"), prompts.get("document"))],
            metric=settings.metric,
            batch_tokens=settings.batch_tokens,
            max_query_length=settings.max_query_length,
            max_document_length=settings.max_document_length,
        )
        self._n_dev, self._keep = n_dev, keep
        self.tokens = self._retrieval.n_tokens

    def score(self, recipe: MergeRecipe) -> dict[str, NDArray[Any]]:
        """Per-query scores of both splits, and fp16 embeddings where they are kept."""
        self._merger.apply(recipe)
        retrieval, (prepared,) = self._retrieval, self._retrieval.collections
        queries, documents = (
            torch.nn.functional.normalize(retrieval.encoder.encode(plan), dim=1)
            for plan in (prepared.queries, prepared.documents)
        )
        search = TopK(queries, prepared.source.collection.doc_ids, retrieval.depth, exclude=prepared.exclude)
        search.add(prepared.document_rows, documents)
        scores = retrieval.metric.score(prepared.judgements.gains(search.result().rows), prepared.judgements)
        found: dict[str, NDArray[Any]] = {"dev": scores[: self._n_dev], "test": scores[self._n_dev :]}
        if self._keep:
            found |= {"queries": queries.half().numpy(), "documents": documents.half().numpy()}
        return found


def fill(study: Study, folder: Path, wanted: int | None, n_documents: int, *, keep: bool = False) -> Bank:
    """Score the merges that are missing, on the study's first collection."""
    folder.mkdir(parents=True, exist_ok=True)
    spec, distances = study.evaluator_spec(), Distances(study)
    collection, n_dev = shared_pool(spec.collections[0], study.collection_specs(test=True)[0], n_documents)
    depends = [collection.content_hash, n_dev, repr(spec.evaluation), dict(spec.collections[0].prompts)]
    merges, recipes = [], {}
    for label, recipe, point in points(study, wanted):
        key = hashlib.sha256(json.dumps([recipe.fingerprint, depends, keep], sort_keys=True).encode()).hexdigest()[:24]
        merges.append(Merge(label, key, *distances.nearest(recipe), point))
        recipes[key] = recipe
    index = {"name": collection.name, "study": study.name, "merges": [vars(m) for m in merges]}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    missing = [m for m in merges if not (folder / f"{m.key}.npz").is_file()]
    filler = Filler(spec, collection, n_dev, keep=keep) if missing else None
    for i, merge in enumerate(missing, 1):
        assert filler is not None
        started = time.process_time()
        scores = filler.score(recipes[merge.key])
        partial = folder / f".{merge.key}.partial.npz"
        np.savez_compressed(partial, **scores)
        partial.rename(folder / f"{merge.key}.npz")
        seconds = time.process_time() - started
        means = f"dev {scores['dev'].mean():.4f}  test {scores['test'].mean():.4f}"
        CONSOLE.print(f"{i}/{len(missing)}  {means}  {seconds:.0f} s CPU, {filler.tokens:,} tokens  {merge.label}")
    return Bank.read(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--points", type=int, help="Sobol points; the whole grid where none are asked for.")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--embeddings", action="store_true", help="Keep fp16 embeddings, too.")
    given = parser.parse_args(arguments)
    study = load_study(given.study)
    bank = fill(study, given.folder, given.points, given.documents, keep=given.embeddings)
    CONSOLE.print(f"{len(bank.merges)} merges, {bank.dev.shape[1]} dev and {bank.test.shape[1]} test queries")


if __name__ == "__main__":
    main()
