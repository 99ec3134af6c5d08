"""What projecting kept embeddings onto their principal directions does to predicted scores.

    python -m tests.benchmarks.projected ../shared/data runs --cache CACHE --dtype bfloat16

Merges and their embeddings are those that `tests.benchmarks.search --parts six` left in CACHE (with the same --lengths
and --dtype). Scores of the merges themselves and of random weighted sums of them, from embeddings as they are and from
projected ones, every merge by itself as a worker does it; and from embeddings rounded to 8 bits, row by row, for
comparison.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergesearch.artifacts import Artifacts
from mergesearch.evaluation.kept import KeptCollection, KeptEmbeddings
from mergesearch.evaluation.pipeline import PreparedCollection
from mergesearch.surrogate.bank import CollectionBank, EmbeddingBank
from tests.benchmarks.evaluated import Evaluated
from tests.benchmarks.search import SIX_ON, THREE, Setting, surrogate, vectors
from tests.benchmarks.tables import markdown

MERGES = 24
SUMS = 40
LOST = (0.0005, 0.002, 0.01, 0.05)


def eight_bits(embeddings: Tensor) -> Tensor:
    """As they are when they come back from 8 bits per number and a scale per row."""
    scale = embeddings.float().abs().amax(dim=-1, keepdim=True) / 127
    return ((embeddings.float() / scale).round() * scale).to(embeddings.dtype)


def scores(prepared: PreparedCollection, merges: Sequence[KeptCollection]) -> np.ndarray:
    """nDCG@10 of the merges and of weighted sums of them, float64 [MERGES + SUMS]."""
    whole = [kept.whole() for kept in merges]
    bank = CollectionBank(
        queries=torch.stack([queries for queries, _ in whole]),
        documents=torch.stack([documents for _, documents in whole]),
        judgements=prepared.judgements,
        document_rows=merges[0].rows,
    )
    sums = np.random.default_rng(0).dirichlet(np.full(len(merges), 0.3), SUMS)
    keys = [str(i) for i in range(len(merges))]
    found: np.ndarray = EmbeddingBank(keys, [bank]).per_query_scores(np.vstack([np.eye(len(merges)), sums]), "ndcg@10")
    return found.mean(axis=1)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/search-cache"))
    parser.add_argument("--lengths", type=int, nargs=2, default=(32, 64))
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    setting = Setting(given.data, given.runs, given.cache, tuple(given.lengths), 1, given.dtype)
    artifacts = Artifacts(given.cache / "embeddings")
    rows = []
    for collection in SIX_ON:
        key = f"six-{collection}"
        pool = Evaluated(setting.study(key, collection, vectors({"segments": 2}), THREE, surrogate(15), 0), given.cache)
        contents = (artifacts.read(result.embeddings) for result in pool.known.values())
        found = [KeptEmbeddings.from_bytes(content).collections[0] for content in contents if content][:MERGES]
        (prepared,) = pool.prepared
        expected = scores(prepared, found)
        kinds = {f"{lost:.2%} of the energy lost": [kept.projected(lost) for kept in found] for lost in LOST}
        kinds["8 bits per number"] = [
            replace(k, queries=eight_bits(k.queries), documents=eight_bits(k.documents)) for k in found
        ]
        for kind, kept in kinds.items():
            off = scores(prepared, kept) - expected
            size = (
                0.5 if kind.startswith("8") else np.mean([k.queries.shape[1] / found[0].queries.shape[1] for k in kept])
            )
            cells = (np.abs(off).mean(), np.abs(off).max(), expected.std())
            rows.append([collection, kind, f"{size:.2f}", *(f"{cell:.4f}" for cell in cells)])
    print(markdown(["collection", "kept", "size", "mean error", "largest", "spread of the scores"], rows))


if __name__ == "__main__":
    main()
