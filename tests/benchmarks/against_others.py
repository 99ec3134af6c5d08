"""mergesearch beside what one would write without it: same models, same dev sample, same machine, one run.

    python -m tests.benchmarks.against_others ../shared/data/nfcorpus --domain runs/nfcorpus-mlm

(i)  mergekit's in-memory API, `SentenceTransformer.encode` and pytrec_eval in a loop over the grid;
(ii) `SentenceTransformer.merge`, `SentenceTransformer.encode` and pytrec_eval as the objective of Optuna's TPE.

Every side runs in a process of its own, with as many threads, one after the other. Seconds count from after the
imports: loading models and texts, then every merge and its score.

*The same points*: all 25 merges of the 5 × 5 grid, on every side.

*To the best of the grid*: until a merge scores within --tolerance of the best of the 25. mergesearch's strategy is run
for real, once per seed; in another dtype as well with --dtype, where what counts is a merge's score in float32. What
the peers need follows from the scores and seconds of their own 25 points, for a merge costs and scores the same in
whatever order it comes: TPE is run on them with many seeds, and the loop is averaged over all orders of the grid. With
--timed the peers score only so many points, and the others are taken to cost as much and to score what they scored
with mergesearch.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergesearch.cli.common import quiet_libraries
from mergesearch.evaluation.result import TrialResult
from mergesearch.listener import Listener
from tests.benchmarks.pair import SHARES, Sample, add_arguments, make_sample
from tests.benchmarks.tables import markdown

SIDES = {
    "mergesearch": "mergesearch, grid",
    "mergekit": "(i) mergekit + encode + pytrec_eval",
    "sentence-transformers": "(ii) SentenceTransformer.merge + encode + pytrec_eval",
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Point:
    """A merge that was scored, and its seconds."""

    lower: float
    upper: float
    value: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A way to the best of the grid, and what it takes."""

    what: str
    seconds: float
    trials: float
    often: str


def main() -> None:
    """Run every side in turn, pair by pair, and print the tables of each and one of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, queries=14)
    parser.add_argument("--strategy", default="embedding_surrogate", help="mergesearch's, for the search")
    parser.add_argument("--trials", type=int, default=12, help="budget of a search")
    parser.add_argument("--seeds", type=int, default=2, help="searches with mergesearch")
    parser.add_argument("--dtype", help="mergesearch searches in this dtype too, such as bfloat16")
    parser.add_argument("--tpe-seeds", type=int, default=100)
    parser.add_argument("--tolerance", type=float, default=0.0005, help="how far from the best counts as the best")
    parser.add_argument("--timed", type=int, default=25, help="points of the grid that the peers score")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the process, where others work beside")
    parser.add_argument("--pair", nargs=3, action="append", default=[], help="another collection, model and --queries")
    parser.add_argument("--side", choices=[*SIDES, "search"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        _run_side(arguments)
        return
    summary = []
    pairs = [(Path(collection), Path(domain), int(queries)) for collection, domain, queries in arguments.pair]
    for collection, domain, queries in [(arguments.collection, arguments.domain, arguments.queries), *pairs]:
        arguments.collection, arguments.domain, arguments.queries = collection, domain, queries
        title = f"{collection.name}, {domain.name if domain else 'perturbed'}"
        print(f"\n## {title}")
        with tempfile.TemporaryDirectory() as root:
            sample = _reduced(make_sample(arguments, Path(root)), Path(root) / "sample")
            (Path(root) / "sample.json").write_text(json.dumps(asdict(sample), default=str))
            grids = {side: _child(arguments, root, side) for side in SIDES}
            searches = _child(arguments, root, "search")
        _complete(grids)
        _print_grids(grids)
        rows = _rows(grids, searches, arguments)
        _print_searches(grids, rows)
        summary.append((title, grids, rows))
    _print_summary(summary)


def _reduced(sample: Sample, folder: Path) -> Sample:
    """The dev sample as a collection of its own, so that no side pays for more."""
    from mergesearch.workers.evaluator_spec import CollectionSpec

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
    passed = ("threads", "strategy", "trials", "seeds", "dtype", "timed", "clock")
    options = [f"--{name}={value}" for name in passed if (value := getattr(arguments, name)) is not None]
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
            found = _theirs(sample, arguments)
    (arguments.work / f"{arguments.side}.json").write_text(json.dumps(found))


def _theirs(sample: Sample, arguments: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks import peers

    make = peers.with_mergekit if arguments.side == "mergekit" else peers.with_sentence_transformers
    clock = CLOCKS[arguments.clock]
    started = clock()
    judged = peers.Judged(sample.collection, (sample.query_length, sample.document_length))
    objective, model = make(sample.retriever, sample.domain, judged)
    loaded = clock() - started
    grid = list(itertools.product(SHARES, SHARES))
    points = []
    for lower, upper in grid[:: math.ceil(len(grid) / arguments.timed)]:
        begun = clock()
        value = objective(lower, upper)
        points.append(asdict(Point(lower, upper, value, clock() - begun)))
    return {"load": loaded, "points": points, "tokens": judged.tokens(model)}


def _ours(sample: Sample, arguments: argparse.Namespace) -> dict[str, Any]:
    search = {"strategy": "grid", "enqueue": []}
    return _study(sample, arguments.work / "grid", search, arguments)


def _search(sample: Sample, arguments: argparse.Namespace) -> dict[str, Any]:
    # What is compared is the way to a dev score, and a search that ends when nothing is promised may end before it.
    options = {"objective": "mean", "patience": arguments.trials} if arguments.strategy == "embedding_surrogate" else {}
    search = {"strategy": {"name": arguments.strategy, **options}, "trials": arguments.trials}
    runs = {}
    for dtype in filter(None, ("float32", arguments.dtype)):
        folders = [arguments.work / f"search-{dtype}-{seed}" for seed in range(arguments.seeds)]
        runs[dtype] = [
            _study(sample, folder, search, arguments, seed=seed, dtype=dtype) for seed, folder in enumerate(folders)
        ]
    return runs


class _Ends(Listener):
    """When the first trial began and every one ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.begun: float | None = None
        self.ended: dict[int, float] = {}

    def started(self, number: int, label: str) -> None:
        if self.begun is None:
            self.begun = self.clock()

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        self.ended[number] = self.clock()


def _study(
    sample: Sample, folder: Path, search: dict[str, Any], arguments: argparse.Namespace, seed: int = 13, **settings: str
) -> dict[str, Any]:
    """A study from its file to its last trial; a point's seconds are those since the one before it."""
    # What a session imports when it first needs it is no more its cost than the peers' imports are theirs.
    import sentence_transformers  # noqa: F401

    from mergesearch.session import open_store, run_study

    folder.mkdir()
    ends = _Ends(CLOCKS[arguments.clock])
    started = ends.clock()
    study = replace(sample, seed=seed).study(folder, search=search, threads=arguments.threads, **settings)
    with open_store(study) as store:
        run_study(study, store, ends)
        trials = {t.number: t for t in store.trials()}
        tokens = sum(result.tokens for number in trials if (result := store.result(number)))
        layers = sum(t.user_attrs.get("layer_tokens", 0) for t in trials.values())
    assert ends.begun is not None
    points, before = [], ends.begun
    for number, end in ends.ended.items():
        trial = trials[number]
        points.append(asdict(Point(*(trial.params[n] for n in sorted(trial.params)), trial.value or 0.0, end - before)))
        before = end
    return {"load": ends.begun - started, "points": points, "tokens": tokens, "layer_tokens": layers}


def _complete(grids: dict[str, Any]) -> None:
    """What every grid took in all; points that a peer was spared have mergesearch's score and the peer's mean cost."""
    every = grids["mergesearch"]["points"]
    for side, grid in grids.items():
        timed = {(p["lower"], p["upper"]): p for p in grid["points"]}
        mean = statistics.mean(p["seconds"] for p in grid["points"])
        if side != "mergesearch":
            grid["off"] = max(
                abs(p["value"] - timed[at]["value"]) for p in every if (at := (p["lower"], p["upper"])) in timed
            )
            grid["points"] = [timed.get((p["lower"], p["upper"]), {**p, "seconds": mean}) for p in every]
            grid["tokens"] *= len(every)
        grid["seconds"] = grid["load"] + sum(p["seconds"] for p in grid["points"])


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
    for side, grid in list(grids.items())[1:]:
        print(f"\nlargest difference of a point's nDCG@10 from mergesearch's, {SIDES[side]}: {grid['off']:.6f}")


def _rows(grids: dict[str, Any], searches: dict[str, Any], arguments: argparse.Namespace) -> list[Row]:
    """The ways to the best of the grid, mergesearch's first."""
    tolerance = arguments.tolerance
    scores = {(p["lower"], p["upper"]): p["value"] for p in grids["mergesearch"]["points"]}
    rows = []
    for dtype, runs in searches.items():
        found = [_reached(run, scores, max(scores.values()) - tolerance) for run in runs]
        rows.append(Row(f"mergesearch, {arguments.strategy}, {dtype}", *_medians(found), _how_many(found, "searches")))
    rows.append(_expected_of_loop(grids["mergekit"], tolerance))
    rows.append(_expected_of_tpe(grids["sentence-transformers"], tolerance, arguments.tpe_seeds))
    for side in ("mergekit", "sentence-transformers"):
        grid = grids[side]
        rows.append(Row(f"{SIDES[side].split()[0]}, the whole grid", grid["seconds"], len(grid["points"]), "always"))
    return rows


def _print_searches(grids: dict[str, Any], rows: Sequence[Row]) -> None:
    per_trial = grids["mergesearch"]["tokens"] / len(grids["mergesearch"]["points"])
    print("\n| to the best of the grid | seconds | trials | tokens | reached | × the first row's seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        tokens = f"{row.trials * per_trial:,.0f}"
        ratio = row.seconds / rows[0].seconds
        print(f"| {row.what} | {row.seconds:.1f} | {row.trials:.1f} | {tokens} | {row.often} | {ratio:.1f} |")


def _print_summary(summary: Sequence[tuple[str, dict[str, Any], list[Row]]]) -> None:
    """By pair and dtype of the search, how many times mergesearch's seconds the peers take; and the medians."""
    head = ["pair", "dtype", "merges", "same 25: (i)", "(ii)", "to the best: (i), mean order", "(ii), TPE"]
    table: list[list[Any]] = []
    for title, grids, rows in summary:
        ours = [row for row in rows if row.what.startswith("mergesearch")]
        same = [grids[side]["seconds"] / grids["mergesearch"]["seconds"] for side in list(SIDES)[1:]]
        for row in ours:
            ways = [other.seconds / row.seconds for other in rows[len(ours) :]]
            table.append([title, row.what.split(", ")[-1], row.trials, *same, *ways])
    for dtype in dict.fromkeys(line[1] for line in table):
        columns = zip(*(line[2:] for line in table if line[1] == dtype), strict=True)
        table.append(["median", dtype, *map(statistics.median, columns)])
    shown = [[*line[:2], f"{line[2]:g}", *(f"{ratio:.2f}" for ratio in line[3:])] for line in table]
    print("\n" + markdown([*head, "(i), whole grid", "(ii), whole grid"], shown))


def _reached(run: dict[str, Any], scores: Mapping[tuple[float, float], float], value: float) -> tuple[float, float]:
    """Seconds and trials until a merge had this value in float32; infinite where none had."""
    seconds = run["load"]
    for count, point in enumerate(run["points"], 1):
        seconds += point["seconds"]
        if scores[point["lower"], point["upper"]] >= value:
            return seconds, count
    return math.inf, math.inf


def _medians(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Of seconds and of trials; searches that did not get there count as the longest."""
    seconds, trials = (statistics.median_high(column) for column in zip(*found, strict=True))
    return seconds, trials


def _how_many(found: list[tuple[float, float]], of: str) -> str:
    return f"{sum(map(math.isfinite, (seconds for seconds, _ in found)))} of {len(found)} {of}"


def _expected_of_loop(grid: dict[str, Any], tolerance: float) -> Row:
    """Mean over all orders: m good ones among n come first at (n + 1) / (m + 1)."""
    values = [p["value"] for p in grid["points"]]
    good = sum(value >= max(values) - tolerance for value in values)
    trials = (len(values) + 1) / (good + 1)
    each = statistics.mean(p["seconds"] for p in grid["points"])
    return Row("(i), mean over all orders of the grid", grid["load"] + trials * each, trials, "always")


def _expected_of_tpe(grid: dict[str, Any], tolerance: float, seeds: int) -> Row:
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
    return Row(f"(ii), Optuna's TPE, median of {seeds} seeds", *_medians(found), _how_many(found, "seeds"))


if __name__ == "__main__":
    main()
