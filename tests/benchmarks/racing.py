"""Raced and unraced studies, drawn from merges that were all evaluated: what racing saves, and what it costs.

    python -m tests.benchmarks.racing_pool STUDY.yaml CACHE [--merges 200]     # once: encodes
    python -m tests.benchmarks.racing STUDY.yaml CACHE [--alpha 0.01] [--looks 0.25 0.5 0.75] [--rivals 1]

Every collection of the study file is a study of its own, and all together another. A study has the anchors first, then
merges of the pool: at random, or (`near`) half of them the nearest to the best so far that was not evaluated, as a
search that learns would. Sources alone may be the best there is, so `rising` leaves the anchors out and takes random
merges roughly from the worst to the best: the first five are never stopped, and many of the others win for a while.
The same seeds go with and without racing; looks, stop rule and estimates are the library's.
With `--interpolated 200` that many more merges are made of few: their embeddings are kriged from those that were
evaluated (ordinary kriging over the shares of the sources), which is a study of the stop rule and not of real merges.

Collections are searched as they are (a pool by its queries' own documents), and, as `whole`, as if nothing were known
of a pool: judged documents and BM25 hits first, the rest with the last look.

saved          tokens not encoded, of all trials
most           the same if every trial that does not beat the best so far were stopped after its first look, which is
               what the overlap of the queries' documents allows
wrong          of trials truly better than the best so far by .005 or more, those that were stopped
winner         (n of seeds) the raced winner's value is within .001 of the unraced one's; and the largest loss
drift          standard deviation, over pairs of merges, of what the paired difference in each look is off from the
               difference over all documents for the same queries; beside it what it is off for want of queries
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.pipeline import PreparedCollection, WeightedCollection
from mergesearch.evaluation.raced import RacedEvaluator
from mergesearch.evaluation.racing import RacingSettings, Rival, judge
from mergesearch.evaluation.tokens import TokenPlan
from mergesearch.resolving import load_study
from mergesearch.study import Study as LoadedStudy
from mergesearch.workers.opening import open_with
from tests.benchmarks.racing_pool import random_points


@dataclass(frozen=True)
class Scores:
    """One collection: `looks` [merges, looks - 1, queries] and `final` [merges, queries]; tokens after each look."""

    name: str
    looks: NDArray[np.float32]
    final: NDArray[np.float64]
    tokens: tuple[int, ...]

    @property
    def values(self) -> NDArray[np.float64]:
        """Mean over queries per merge."""
        return self.final.mean(axis=1)


class Replayed(Encoder):
    """An encoder that reads embeddings instead of computing them, per plan and text."""

    def replay(self, whole: PreparedCollection, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> None:
        """The embeddings of the next trial, in the order of the plans' texts."""
        self._embeddings = {
            id(plan.offsets): torch.from_numpy(embeddings)  # what a plan of fewer batches shares with the whole one
            for plan, embeddings in ((whole.queries, queries), (whole.documents, documents))
        }

    def encode_batch(self, plan: TokenPlan, texts: NDArray[np.int64]) -> torch.Tensor:
        """Rows of what was given."""
        return self._embeddings[id(plan.offsets)][torch.from_numpy(texts)]


def score_merges(
    encoder: Encoder,
    collection: Collection,
    racing: RacingSettings,
    files: list[Path],
    mixes: NDArray[np.float32],
    options: dict[str, int | None],
) -> Scores:
    """Every merge scored in looks; its embeddings are those of the evaluated ones times a row of `mixes`."""
    encoder.__class__ = Replayed
    assert isinstance(encoder, Replayed)
    evaluator = RacedEvaluator(encoder, [WeightedCollection(collection)], racing=racing, **options)
    arrays = [np.load(file) for file in files]
    queries, documents = (
        np.stack([a[f"{collection.name}/{kind}"] for a in arrays]) for kind in ("queries", "documents")
    )
    looks, final = [], []
    for mix in mixes:
        of_merge = [np.tensordot(mix, embeddings, 1) for embeddings in (queries, documents)]
        encoder.replay(evaluator.collections[0], *of_merge)
        result = evaluator.evaluate()
        looks.append(result.collections[0].looks)
        final.append(result.collections[0].scores)
    assert all(table is not None for table in looks)
    tokens = tuple(look.tokens for look in result.looks)
    return Scores(collection.name, np.array(looks), np.array(final), tokens)


def kriging_weights(known: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weights of the known points for each wanted one, rows of sum 1: ordinary kriging, Gaussian covariance."""

    def covariance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(-0.5 * np.square(a[:, None] - b[None]).sum(axis=2))

    n = len(known)
    matrix = np.ones((n + 1, n + 1))
    matrix[:n, :n] = covariance(known, known) + 1e-9 * np.eye(n)
    matrix[n, n] = 0
    right = np.ones((n + 1, len(wanted)))
    right[:n] = covariance(known, wanted)
    return np.linalg.solve(matrix, right)[:n].T.astype(np.float32)


def coordinates(study: LoadedStudy, params: list[dict[str, float]]) -> NDArray[np.float64]:
    """Points as shares of the sources in every group."""
    names = [d.name for d in study.space.dimensions]
    groups = np.array([name.rpartition(".")[2] for name in names])
    points = np.array([[p[name] for name in names] for p in params])
    sums = np.stack([points[:, groups == g].sum(axis=1) for g in groups], axis=1)
    return np.divide(points, sums, out=points, where=sums != 0)


@dataclass
class Study:
    """What came of one simulated study."""

    tokens: int = 0
    least: int = 0
    better: int = 0
    wrong: int = 0
    stopped: int = 0
    winner: float = 0.0


def simulate(
    parts: list[Scores],
    points: NDArray[np.float64],
    anchors: int,
    *,
    seed: int,
    trials: int,
    mode: str,
    racing: RacingSettings | None,
) -> Study:
    """One study over the pool; `racing` None evaluates every trial whole."""
    random = np.random.default_rng(seed)
    values = np.mean([p.values for p in parts], axis=0)
    merges = anchors + random.permutation(len(points) - anchors)
    order = [*range(anchors), *merges]
    if mode == "rising":
        drawn = merges[: trials * 3 // 2]
        order = [*drawn[np.argsort(values[drawn] + random.normal(0, values[drawn].std(), len(drawn)))]]
    exploits = (random.random(trials) < 0.5) & (mode == "near")
    tokens = [sum(p.tokens[k] for p in parts) for k in range(len(parts[0].tokens))]
    shares = [1.0] * len(parts)
    study, complete, learned = Study(), [], {}
    for number in range(trials):
        left = [m for m in order if m not in learned]
        merge = left[0]
        if number >= anchors + 5 and exploits[number]:
            best = max(learned, key=lambda m: learned[m])
            merge = min(left, key=lambda m: float(np.square(points[m] - points[best]).sum()))
        incumbent = max((values[m] for m in complete), default=-np.inf)
        stopped_at = None
        if racing is not None and number >= anchors:
            ranked = sorted(complete, key=lambda m: -values[m])[: racing.rivals]
            rivals = [Rival(m, values[m], tuple(p.looks[m] for p in parts)) for m in ranked]
            for k in range(len(tokens) - 1):
                mine = [p.looks[merge][k] for p in parts]
                verdict = judge(mine, rivals, k, shares=shares, settings=racing)
                if verdict is not None:
                    stopped_at, learned[merge] = k, verdict.estimate
                    break
        if number >= anchors and values[merge] >= incumbent + 0.005:
            study.better += 1
            study.wrong += stopped_at is not None
        study.least += tokens[-1] if number < anchors or values[merge] > incumbent else tokens[0]
        study.tokens += tokens[-1 if stopped_at is None else stopped_at]
        study.stopped += stopped_at is not None
        if stopped_at is None:
            learned[merge] = float(values[merge])
            complete.append(merge)
    study.winner = float(max(values[m] for m in complete))
    return study


def describe_drift(scores: Scores) -> str:
    """How far paired differences in each look are from what they are for the same queries over all documents."""
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(scores.final), (400, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    said = []
    for k in range(scores.looks.shape[1]):
        seen = ~np.isnan(scores.looks[0, k])
        there = (scores.looks[pairs[:, 0], k][:, seen] - scores.looks[pairs[:, 1], k][:, seen]).mean(axis=1)
        final = (scores.final[pairs[:, 0]][:, seen] - scores.final[pairs[:, 1]][:, seen]).mean(axis=1)
        sampling = (scores.final[pairs[:, 0]] - scores.final[pairs[:, 1]]).mean(axis=1) - final
        slope = float((there * final).sum() / (there * there).sum())
        said.append(f"{np.std(there - final):.4f} (sampling {np.std(sampling):.4f}, slope {slope:.2f})")
    return "drift " + ", ".join(said)


def report(name: str, parts: list[Scores], points: NDArray[np.float64], anchors: int, args: argparse.Namespace) -> None:
    """Two lines per collection: random draws and near ones."""
    shares = tuple(
        round(sum(p.tokens[k] for p in parts) / sum(p.tokens[-1] for p in parts), 2)
        for k in range(len(parts[0].tokens))
    )
    print(
        f"{name}: tokens after each look {shares}; {', '.join(map(describe_drift, parts)) if len(parts) == 1 else ''}"
    )
    racing = RacingSettings(LookSettings((*args.looks, 1.0)), alpha=args.alpha, rivals=args.rivals)
    trials = min(args.trials, len(points))
    for mode in ("random", "near", "rising"):
        found = []
        for seed in range(args.seeds):
            how = {"seed": seed, "trials": trials, "mode": mode}
            raced = simulate(parts, points, anchors, racing=racing, **how)
            plain = simulate(parts, points, anchors, racing=None, **how)
            found.append((raced, plain))
        whole = sum(p.tokens for _, p in found)
        better, wrong = sum(r.better for r, _ in found), sum(r.wrong for r, _ in found)
        loss = [p.winner - r.winner for r, p in found]
        print(
            f"  {mode:<7} saved {1 - sum(r.tokens for r, _ in found) / whole:6.1%}  "
            f"most {1 - sum(r.least for r, _ in found) / whole:6.1%}  "
            f"stopped {sum(r.stopped for r, _ in found) / len(found) / trials:6.1%}  wrong {wrong}/{better}  "
            f"winner {sum(x <= 0.001 for x in loss)}/{len(loss)}, loses {max(0.0, max(loss)):.4f} at most",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=RacingSettings().alpha)
    parser.add_argument("--rivals", type=int, default=RacingSettings().rivals)
    parser.add_argument("--interpolated", type=int, default=0)
    parser.add_argument("--looks", type=float, nargs="+", default=LookSettings().shares[:-1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(args.study)
    listed = json.loads((args.cache / "recipes.json").read_text(encoding="utf-8"))
    there = [i for i, f in enumerate(listed["fingerprints"]) if (args.cache / f"{f}.npz").exists()]
    files = [args.cache / f"{listed['fingerprints'][i]}.npz" for i in there]
    anchors = listed["anchors"]
    located = [dict(a.params or {}) for a in study.anchors()]
    points = coordinates(study, [listed["params"][i] or located[i] for i in there])
    mixes = np.eye(len(files), dtype=np.float32)
    if args.interpolated:
        wanted = coordinates(study, random_points(study, args.interpolated))
        mixes = np.concatenate([mixes, kriging_weights(points, wanted)])
        points = np.concatenate([points, wanted])
    evaluation = study.parsed.content.evaluation
    settings = study.evaluator_spec().evaluation
    of = f"{len(files)} evaluated merges ({anchors} of them anchors) and {args.interpolated} interpolated ones"
    print(f"{of}; {args.trials} trials, {args.seeds} seeds, alpha {args.alpha}, {args.rivals} rivals")
    encoder = open_with(settings, study.folders[study.parsed.content.merge.template])
    racing = RacingSettings(LookSettings((*args.looks, 1.0)))
    options = {
        "max_query_length": evaluation.max_length.query,
        "max_document_length": evaluation.max_length.document,
    }
    together = []
    for collection in study.collections:
        scores = score_merges(encoder, collection, racing, files, mixes, options)
        together.append(scores)
        report(f"{collection.name}, {scores.final.shape[1]} queries", [scores], points, anchors, args)
        if collection.pooled is not None:
            whole = score_merges(encoder, replace(collection, pooled=None), racing, files, mixes, options)
            report(f"{collection.name}, whole", [whole], points, anchors, args)
    if len(together) > 1:
        report("all", together, points, anchors, args)


if __name__ == "__main__":
    main()
