"""What may explain that a merge gains or does not: kept for every collection and domain model.

How far the domain model has moved from the retriever, how far the words of the corpus are from those of the others,
how much the two models err on the same queries, and how much was known of the merges when one was chosen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergesearch.protocols.quality.text import read_titles
from mergesearch.sources.alignment import align_within
from mergesearch.sources.weights import read_tensors
from mergesearch.study import Study


def weight_distance(study: Study, a: str, b: str) -> dict[str, float]:
    """‖Θ_b − Θ_a‖ / ‖Θ_a‖ of every merged group, and of all of them together (`all`)."""
    merged = {place: g.name for g in study.groups if g.merged for place in g.places}
    names = {s: align_within(study.checkpoints[s], study.layout, set(merged)) for s in (a, b)}
    tensors = {s: read_tensors(study.checkpoints[s], names[s]) for s in (a, b)}
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, x in tensors[a].items():
        group = merged[study.layout.parameters[name].place]
        for key in (group, "all"):
            moved[key] += float((tensors[b][name].double() - x.double()).square().sum())
            size[key] += float(x.double().square().sum())
    return {key: math.sqrt(moved[key] / size[key]) for key in size}


def token_counts(folder: Path, tokenizer: Any) -> tuple[Counter[int], int]:
    """How often every token stands in a corpus, special tokens left out, and how many words it has."""
    counts: Counter[int] = Counter()
    words = 0
    for title, text in read_titles(folder):
        whole = f"{title} {text}".strip()
        words += len(whole.split())
        counts.update(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])
    return counts, words


def vocabulary_shift(counts: Mapping[str, Counter[int]], collection: str) -> float:
    """Jensen–Shannon divergence, in bits, of a corpus's tokens from those of the other corpora, each counted alike.

    The others stand for text in general; 0 is the same distribution, 1 is no token in common.
    """
    mine = _shares(counts[collection])
    others = [_shares(c) for name, c in counts.items() if name != collection]
    general: dict[int, float] = defaultdict(float)
    for shares in others:
        for token, share in shares.items():
            general[token] += share / len(others)
    tokens = sorted(set(mine) | set(general))
    p, q = (np.array([d.get(t, 0.0) for t in tokens]) for d in (mine, general))
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(x > 0, x * np.log2(x / m), 0.0).sum() for x in (p, q)]
    return float(sum(parts) / 2)


def _shares(counts: Counter[int]) -> dict[int, float]:
    total = counts.total()
    return {token: n / total for token, n in counts.items()}


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Of two models' scores over queries: low where they err on different ones; None where one never varies."""
    x, y = np.asarray(a), np.asarray(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None
