"""Whether pseudo-queries rank merges as judged queries do, from the recorded trials of a study on both.

    python -m tests.benchmarks.pseudo_queries STUDY.yaml [--storage URL]

Of a study whose dev collections are pseudo-queries and judged queries of the same documents (see
studies/pseudo-queries.yaml): the score of every merge on each collection; how each collection of pseudo-queries ranks
them beside the judged one (Spearman's correlation, over all merges and over those that are no source alone, with a 95%
bootstrap interval over queries of both); and what a choice by the highest pseudo-score is worth on the judged queries,
beside the best merge there and the template alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from mergesearch.cli.common import open_existing
from mergesearch.resolving import load_study
from mergesearch.results.view import TrialView, read_view

CONSOLE = Console(soft_wrap=True, highlight=False)
DRAWS = 2000
Matrix = NDArray[np.float64]


def scores_of(trials: list[TrialView], collection: str) -> Matrix:
    """Scores by merge and query, float64 [T, Q]."""
    return np.stack([c.scores for t in trials if t.result for c in t.result.collections if c.collection == collection])


def correlation(pseudo: Matrix, judged: Matrix, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's correlation of mean scores over merges, and a 95% interval over resampled queries of both."""
    rng = np.random.default_rng(seed)

    def resampled(scores: Matrix) -> NDArray[np.float64]:
        return scores[:, rng.integers(0, scores.shape[1], scores.shape[1])].mean(axis=1)

    drawn = [float(spearmanr(resampled(pseudo), resampled(judged)).statistic) for _ in range(DRAWS)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(spearmanr(pseudo.mean(axis=1), judged.mean(axis=1)).statistic), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--storage")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    with open_existing(arguments.study, arguments.storage) as store:
        view = read_view(study, store)
    trials = list(view.scored)
    pseudo = [c.name for c in study.collection_specs() if c.pseudo_queries]
    (judged,) = [c.name for c in study.collection_specs() if not c.pseudo_queries]
    scores = {name: scores_of(trials, name) for name in (*pseudo, judged)}
    means = {name: matrix.mean(axis=1) for name, matrix in scores.items()}
    table = Table("trial", "merge", *(f"{name} ({scores[name].shape[1]})" for name in scores), box=None)
    for i, t in enumerate(trials):
        table.add_row(str(t.number), t.label.replace(".segment_1", ""), *(f"{means[name][i]:.4f}" for name in scores))
    CONSOLE.print(table)
    merges = [i for i, t in enumerate(trials) if t.number not in {s.number for s in view.sources.values()}]
    (template,) = [i for i, t in enumerate(trials) if t is view.sources.get(study.parsed.content.merge.template)]
    for name in pseudo:
        for what, rows in (("all", list(range(len(trials)))), ("no source alone", merges)):
            value, low, high = correlation(scores[name][rows], scores[judged][rows])
            CONSOLE.print(
                f"{name} with {judged}, {len(rows)} merges, {what}: Spearman {value:+.2f} [{low:+.2f}, {high:+.2f}]"
            )
        chosen, best = int(means[name].argmax()), int(means[judged].argmax())
        CONSOLE.print(
            f"{name} chooses trial {trials[chosen].number}: {means[judged][chosen]:.4f} on {judged}; the best there, "
            f"trial {trials[best].number}, has {means[judged][best]:.4f}, the template {means[judged][template]:.4f}"
        )


if __name__ == "__main__":
    main()
