"""mergesearch beside what one would write without it: same models, same dev sample, same machine, one run.

    python -m tests.benchmarks.against_others ../shared/data/nfcorpus --domain runs/nfcorpus-mlm

(i)  mergekit's in-memory API, `SentenceTransformer.encode` and pytrec_eval in a loop over the grid;
(ii) `SentenceTransformer.merge`, `SentenceTransformer.encode` and pytrec_eval as the objective of Optuna's TPE.

Every side runs in a process of its own, with as many threads, one after the other. Seconds count from after the
imports: loading models and texts, then every merge and its score.

*The same points*: all 25 merges of the 5 × 5 grid, on every side.

*To the best of the grid*: until a merge scores within --tolerance of the best of the 25. mergesearch's strategy is run
for real, once per seed. What the peers need follows from the scores and seconds of their own 25 points, for a merge
costs and scores the same in whatever order it comes: TPE is run on them with many seeds, and the loop is averaged
over all orders of the grid.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mergesearch.cli.common import quiet_libraries
from tests.benchmarks.pair import SHARES, Sample, add_arguments, make_sample

SIDES = {
    "mergesearch": "mergesearch, grid",
    "mergekit": "(i) mergekit + encode + pytrec_eval",
    "sentence-transformers": "(ii) SentenceTransformer.merge + encode + pytrec_eval",
}
STANDBY = "gp"
"""Searched with where the registry lacks the strategy asked for."""


@dataclass(frozen=True)
class Point:
    """A merge that was scored, and its seconds."""

    lower: float
    upper: float
    value: float
    seconds: float


def main() -> None:
    """Run every side in turn and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, queries=14)
    parser.add_argument("--strategy", default="embedding_surrogate", help="mergesearch's, for the search")
    parser.add_argument("--trials", type=int, default=12, help="budget of a search")
    parser.add_argument("--seeds", type=int, default=2, help="searches with mergesearch")
    parser.add_argument("--tpe-seeds", type=int, default=100)
    parser.add_argument("--tolerance", type=float, default=0.0005, help="how far from the best counts as the best")
    parser.add_argument("--side", choices=[*SIDES, "search"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        _run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as root:
        sample = _reduced(make_sample(arguments, Path(root)), Path(root) / "sample")
        (Path(root) / "sample.json").write_text(json.dumps(asdict(sample), default=str))
        grids = {side: _child(arguments, root, side) for side in SIDES}
        searches = _child(arguments, root, "search")
    _print_grids(grids)
    _print_searches(grids, searches, arguments)


def _reduced(sample: Sample, folder: Path) -> Sample:
    """The dev sample as a collection of its own, so that no side pays for more."""
    from mergesearch.workers.evaluator import CollectionSpec

    options = {"folder": str(sample.collection)}
    spec = CollectionSpec(
        "sample", "beir", options, "dev", Path(), sample.queries, sample.negatives, seed=sample.seed
    )  # fmt: skip
    loaded = spec.load()
    (folder / "qrels").mkdir(parents=True)
    for name, ids, texts in (
        ("corpus", loaded.doc_ids, loaded.doc_texts),
        ("queries", loaded.query_ids, loaded.query_texts),
    ):
        rows = ({"_id": i, "title": "", "text": t} for i, t in zip(ids, texts, strict=True))
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    judged = [f"{q}\t{d}\t{g}\n" for q in loaded.query_ids for d, g in loaded.qrels.get(q, {}).items()]
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    print(f"{len(loaded.query_ids)} queries, {len(loaded.doc_ids)} documents")
    return Sample(sample.retriever, sample.domain, folder, None, None)


def _child(arguments: argparse.Namespace, root: str, side: str) -> Any:
    print(f"running {side}", flush=True)
    options = [f"--{name}={getattr(arguments, name)}" for name in ("threads", "strategy", "trials", "seeds")]
    command = [sys.executable, "-m", "tests.benchmarks.against_others", str(arguments.collection), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "true"}
    subprocess.run([*command, f"--side={side}", f"--work={root}"], check=True, env=environment)
    return json.loads((Path(root) / f"{side}.json").read_text())


def _run_side(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    written = json.loads((arguments.work / "sample.json").read_text())
    paths = {name: Path(written.pop(name)) for name in ("retriever", "domain", "collection")}
    sample = Sample(**paths, **written)
    with quiet_libraries():
        if arguments.side == "search":
            found: Any = _search(sample, arguments)
        elif arguments.side == "mergesearch":
            found = _ours(sample, arguments)
        else:
            found = _theirs(sample, arguments.side)
    (arguments.work / f"{arguments.side}.json").write_text(json.dumps(found))


def _theirs(sample: Sample, side: str) -> dict[str, Any]:
    from tests.benchmarks import peers

    make = peers.with_mergekit if side == "mergekit" else peers.with_sentence_transformers
    started = time.perf_counter()
    judged = peers.Judged(sample.collection, (sample.query_length, sample.document_length))
    objective, model = make(sample.retriever, sample.domain, judged)
    loaded = time.perf_counter() - started
    points = []
    for lower, upper in itertools.product(SHARES, SHARES):
        begun = time.perf_counter()
        value = objective(lower, upper)
        points.append(asdict(Point(lower, upper, value, time.perf_counter() - begun)))
    seconds = time.perf_counter() - started
    return {"load": loaded, "seconds": seconds, "points": points, "tokens": judged.tokens(model) * len(points)}


def _ours(sample: Sample, arguments: argparse.Namespace) -> dict[str, Any]:
    search = {"strategy": "grid", "enqueue": []}
    return _study(sample, arguments.work / "grid", search, arguments.threads)


def _search(sample: Sample, arguments: argparse.Namespace) -> dict[str, Any]:
    from mergesearch.search.registry import STRATEGIES

    strategy = arguments.strategy
    if strategy not in STRATEGIES:
        print(f"there is no strategy {strategy!r} in this version: {STANDBY} searches instead")
        strategy = STANDBY
    # What is compared is the way to a dev score, and a search that ends when nothing is promised may end before it.
    options = {"objective": "mean", "patience": arguments.trials} if strategy == "embedding_surrogate" else {}
    search = {"strategy": {"name": strategy, **options}, "trials": arguments.trials}
    runs = [
        _study(sample, arguments.work / f"search-{seed}", search, arguments.threads, seed=seed)
        for seed in range(arguments.seeds)
    ]
    return {"strategy": strategy, "runs": runs}


def _study(sample: Sample, folder: Path, search: dict[str, Any], threads: int, seed: int = 13) -> dict[str, Any]:
    """A study from its file to its last trial; a point's seconds are those since the one before it."""
    from dataclasses import replace

    # What a session imports when it first needs it is no more its cost than the peers' imports are theirs.
    import sentence_transformers  # noqa: F401

    from mergesearch.session import open_store, run_study

    folder.mkdir()
    started, clock = time.perf_counter(), datetime.now()
    study = replace(sample, seed=seed).study(folder, search=search, threads=threads)
    with open_store(study) as store:
        run_study(study, store)
        seconds = time.perf_counter() - started
        trials = sorted(store.trials(), key=lambda t: t.datetime_complete)
        ends = [(t.datetime_complete - clock).total_seconds() for t in trials]
        tokens = sum(result.tokens for t in trials if (result := store.result(t.number)))
    begins = [(t.datetime_start - clock).total_seconds() for t in trials]
    points = [
        asdict(Point(*(t.params[name] for name in sorted(t.params)), t.value, end - before))
        for t, end, before in zip(trials, ends, [begins[0], *ends[:-1]], strict=True)
        if t.value is not None and len(t.params) == 2
    ]
    return {"load": begins[0], "seconds": seconds, "points": points, "tokens": tokens}


def _print_grids(grids: dict[str, Any]) -> None:
    ours = grids["mergesearch"]
    print("\n| the same 25 points | seconds | per point | tokens | best nDCG@10 | × mergesearch's seconds |")
    print("|---|---|---|---|---|---|")
    for side, grid in grids.items():
        points = [Point(**p) for p in grid["points"]]
        per_point = statistics.median(p.seconds for p in points)
        best = max(p.value for p in points)
        print(
            f"| {SIDES[side]} | {grid['seconds']:.1f} | {per_point:.3f} | {grid['tokens']:,} | {best:.4f} | "
            f"{grid['seconds'] / ours['seconds']:.2f} |"
        )
    values = {(p["lower"], p["upper"]): p["value"] for p in ours["points"]}
    for side, grid in list(grids.items())[1:]:
        furthest = max(abs(p["value"] - values[p["lower"], p["upper"]]) for p in grid["points"])
        print(f"\nlargest difference of a point's nDCG@10 from mergesearch's, {SIDES[side]}: {furthest:.6f}")


def _print_searches(grids: dict[str, Any], searches: dict[str, Any], arguments: argparse.Namespace) -> None:
    tolerance = arguments.tolerance
    rows: list[tuple[str, float, float, str]] = []  # what, seconds, trials, how often it got there
    best = max(p["value"] for p in grids["mergesearch"]["points"])
    found = [_reached(run, best - tolerance) for run in searches["runs"]]
    rows.append((f"mergesearch, {searches['strategy']}", *_medians(found), _how_many(found, "searches")))
    rows.append(_expected_of_loop(grids["mergekit"], tolerance))
    rows.append(_expected_of_tpe(grids["sentence-transformers"], tolerance, arguments.tpe_seeds))
    whole = grids["mergekit"]
    rows.append(("(i), the whole grid", whole["seconds"], len(whole["points"]), "always"))
    per_trial = grids["mergesearch"]["tokens"] / len(grids["mergesearch"]["points"])
    print("\n| to the best of the grid | seconds | trials | tokens | reached | × the first row's seconds |")
    print("|---|---|---|---|---|---|")
    for what, seconds, trials, often in rows:
        ratio = seconds / rows[0][1]
        print(f"| {what} | {seconds:.1f} | {trials:.1f} | {trials * per_trial:,.0f} | {often} | {ratio:.1f} |")


def _reached(run: dict[str, Any], value: float) -> tuple[float, float]:
    """Seconds and trials until a merge had this value; infinite where none had."""
    seconds = run["load"]
    for count, point in enumerate(run["points"], 1):
        seconds += point["seconds"]
        if point["value"] >= value:
            return seconds, count
    return math.inf, math.inf


def _medians(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Of seconds and of trials; searches that did not get there count as the longest."""
    seconds, trials = (statistics.median_high(column) for column in zip(*found, strict=True))
    return seconds, trials


def _how_many(found: list[tuple[float, float]], of: str) -> str:
    return f"{sum(map(math.isfinite, (seconds for seconds, _ in found)))} of {len(found)} {of}"


def _expected_of_loop(grid: dict[str, Any], tolerance: float) -> tuple[str, float, float, str]:
    """Mean over all orders: m good ones among n come first at (n + 1) / (m + 1)."""
    values = [p["value"] for p in grid["points"]]
    good = sum(value >= max(values) - tolerance for value in values)
    trials = (len(values) + 1) / (good + 1)
    each = statistics.mean(p["seconds"] for p in grid["points"])
    return "(i), mean over all orders of the grid", grid["load"] + trials * each, trials, "always"


def _expected_of_tpe(grid: dict[str, Any], tolerance: float, seeds: int) -> tuple[str, float, float, str]:
    """Median over seeds of TPE on the measured points; a point that comes again is paid for again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = {(p["lower"], p["upper"]): Point(**p) for p in grid["points"]}
    wanted = max(p.value for p in points.values()) - tolerance
    found: list[tuple[float, float]] = []
    for seed in range(seeds):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        seconds = grid["load"]
        for count in range(1, 10 * len(points) + 1):
            asked = time.perf_counter()
            trial = study.ask()
            lower, upper = (trial.suggest_float(name, 0, 1, step=SHARES[1]) for name in ("lower", "upper"))
            point = points[lower, upper]
            study.tell(trial, point.value)
            seconds += point.seconds + time.perf_counter() - asked
            if point.value >= wanted:
                found.append((seconds, count))
                break
        else:
            found.append((math.inf, math.inf))
    return f"(ii), Optuna's TPE, median of {seeds} seeds", *_medians(found), _how_many(found, "seeds")


if __name__ == "__main__":
    main()
