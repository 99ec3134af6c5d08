"""How many workers one coordinator keeps busy, and four: real coordinators and PostgreSQL, simulated workers.

    python -m tests.benchmarks.coordinator_scale [--workers 256] [--mean 20] [--seconds 100] [--coordinators 1,4]
                                                 [--strategies tpe,grid] [--sigma 0.5]

Every coordinator is a process of its own that runs the library's controller on one study in one database. A worker is
a timer: it is given a task as a real one is, and answers when a time drawn from a log-normal distribution (at most
twice the mean) is over; 256 threads that sleep would do the same. Trials are begun for so many seconds, then those in
flight are waited for.

`busy` is the share of the workers' time in which they had a task, from when they all had one (or half was over) until
no more are begun. `ask` is the time from a worker's answer until its next task: recording results, those of other
workers too, reading what others did, proposing and beginning. `lost` counts proposals that were made in vain because
another coordinator began a trial first.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil

from mergesearch.controller import Controller
from mergesearch.listener import Listener
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.storage import StudyStore
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from tests.benchmarks.coordinator import cpu_seconds
from tests.benchmarks.coordinator_study import scored, study_of, with_search
from tests.benchmarks.tables import markdown
from tests.postgres import PostgresServer, own_server

SPACES: dict[str, dict[str, Any]] = {"tpe": {"dimensions": 8}, "grid": {"dimensions": 4, "values": 9}}
"""Eight continuous coefficients; 6,561 points of four."""


class Timers(WorkerPool):
    """Workers that are times at which they will answer.

    Attributes:
        tasks: per task, when it was given and when it is answered, in seconds of `time.monotonic`.
        waits: (when, seconds) from a worker's answer until its next task.
    """

    def __init__(self, workers: int, mean: float, sigma: float, seed: int) -> None:
        self._idle = dict.fromkeys((f"worker-{i}" for i in range(workers)), -1.0)  # since when; -1: from the start
        self._heap: list[tuple[float, int, str, Task]] = []
        self._rng = np.random.default_rng(seed)
        self._mu, self._sigma, self._most = np.log(mean) - sigma**2 / 2, sigma, 2 * mean
        self.tasks: list[tuple[float, float]] = []
        self.waits: list[tuple[float, float]] = []

    @property
    def idle(self) -> tuple[str, ...]:
        return tuple(self._idle)

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        assert isinstance(task, Task)
        name, now = worker or next(iter(self._idle)), time.monotonic()
        since = self._idle.pop(name)
        if since >= 0:
            self.waits.append((now, now - since))
        due = now + min(float(self._rng.lognormal(self._mu, self._sigma)), self._most)
        self.tasks.append((now, due))
        heapq.heappush(self._heap, (due, task.number, name, task))
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        next_due = self._heap[0][0] if self._heap else float("inf")
        time.sleep(max(0.0, min(next_due - time.monotonic(), timeout or float("inf"))))
        found = []
        while self._heap and self._heap[0][0] <= time.monotonic():
            due, _, name, task = heapq.heappop(self._heap)
            self._idle[name] = due
            found.append(Outcome(task, name, scored(task.recipe, name)))
        return found

    def close(self) -> None:
        self._heap.clear()


@dataclass
class Report:
    """What one coordinator saw; times are those of `time.monotonic`, which processes of a machine share."""

    tasks: list[tuple[float, float]]
    waits: list[tuple[float, float]]
    cpu: float
    overtaken: int
    evaluated: int
    reason: str
    best: float = 0.0


def coordinate(arguments: argparse.Namespace) -> Report:
    """One coordinator: it says when it is ready, and begins when it is told to."""
    study = load_study(arguments.study)
    study = with_search(study, strategy=arguments.strategies, minutes=arguments.seconds / 60, enqueue=[])
    pool = Timers(arguments.workers, arguments.mean, arguments.sigma, arguments.seed)
    with open_store(study, arguments.url) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        before = time.process_time()
        summary = Controller(study, store, pool, Listener()).run()
        cpu = time.process_time() - before
        best = max(t.value for t in store.trials() if t.state.name == "COMPLETE" and t.value is not None)
    return Report(pool.tasks, pool.waits, cpu, summary.overtaken, summary.evaluated, summary.reason, best)


def simulate(server: PostgresServer, strategy: str, coordinators: int, arguments: argparse.Namespace) -> list[str]:
    """One line of the table."""
    database = f"{strategy}_{coordinators}"
    server.execute(f"CREATE DATABASE {database}")
    url = server.url(database)
    process = psutil.Process(server.pid)
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), strategy=strategy, enqueue=[], minutes=1, **SPACES[strategy])
        open_store(study, url).close()
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.coordinator_scale", "--url", url]
        command += ["--study", str(Path(folder) / "study.yaml"), "--strategies", strategy]
        command += ["--workers", str(arguments.workers // coordinators), "--seconds", str(arguments.seconds)]
        command += ["--mean", str(arguments.mean), "--sigma", str(arguments.sigma)]
        children = [
            subprocess.Popen([*command, "--seed", str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for i in range(coordinators)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        used, start, reports = cpu_seconds(process), time.monotonic(), []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            out, _ = child.communicate(timeout=1200)
            reports.append(Report(**json.loads(out)))
        server_cpu = cpu_seconds(process) - used
        with StudyStore.open(url, study.name, None, exclusive=False) as store:
            trials = store.trials()
    evaluated = sum(r.evaluated for r in reports)
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert len(complete) == len(trials) == evaluated + sum("duplicate_of" in t.user_attrs for t in trials), (
        "lost trials"
    )
    recipes = [t.user_attrs["recipe"] for t in complete if "duplicate_of" not in t.user_attrs]
    twice = len(recipes) - len(set(recipes))
    tasks = [task for r in reports for task in r.tasks]
    end = start + arguments.seconds
    full = sorted(begun for begun, _ in tasks)[arguments.workers - 1 :][:1]
    begin = min(full[0] if full else end, start + arguments.seconds / 2)
    busy = sum(max(0.0, min(due, end) - max(begun, begin)) for begun, due in tasks)
    share = busy / (arguments.workers * (end - begin))
    waits = np.array([s for r in reports for when, s in r.waits if begin <= when <= end])
    rate = sum(begin <= begun < end for begun, _ in tasks) / (end - begin)
    quantiles = [f"{q:.2f}" for q in np.quantile(waits, [0.5, 0.9, 0.99])]
    wall = max(due for _, due in tasks) - start
    agreed = "yes" if len({r.best for r in reports}) == 1 else "no"
    overtaken = sum(r.overtaken for r in reports)
    lost = f"{overtaken} ({overtaken / (overtaken + len(trials)):.0%})"
    used_by = [f"{sum(r.cpu for r in reports) / wall:.2f}", f"{server_cpu / wall:.2f}"]
    counts = [f"{len(trials):,}", f"{rate:.1f}", f"{share:.1%}"]
    return [strategy, str(coordinators), *counts, *quantiles, *used_by, lost, str(twice), agreed]


def main() -> None:
    """The table, or, with `--url`, one coordinator of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=256, help="of all coordinators together")
    parser.add_argument("--mean", type=float, default=20, help="seconds of a trial")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the logarithm of these seconds")
    parser.add_argument("--seconds", type=float, default=100, help="in which trials are begun")
    parser.add_argument("--coordinators", default="1,4")
    parser.add_argument("--strategies", default="tpe,grid")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--study", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.url:
        print(json.dumps(asdict(coordinate(arguments))))
        return
    rows = []
    with own_server() as server:
        for strategy in arguments.strategies.split(","):
            for coordinators in map(int, arguments.coordinators.split(",")):
                rows.append(simulate(server, strategy, coordinators, arguments))
                print("; ".join(rows[-1]), f"; load {psutil.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{arguments.workers} workers, {arguments.mean:g} s a trial, {psutil.cpu_count()} cores\n")
    head = ["strategy", "coordinators", "trials", "trials/s", "busy", "ask p50 s", "p90", "p99"]
    print(markdown([*head, "coordinators' cores", "server's cores", "lost", "twice", "best agreed"], rows))


if __name__ == "__main__":
    main()
