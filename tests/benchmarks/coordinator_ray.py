"""Real Ray workers whose trials take a second each: how near their throughput comes to one trial a second and worker.

    python -m tests.benchmarks.coordinator_ray [--workers 1,2,4] [--trials 20] [--seconds 1]

The library's controller, a PostgreSQL server and `RayPool` with its actors, as `mergesearch run` puts them together;
TPE over eight coefficients. The actors merge and score a model of kilobytes, and then sleep until the second is over:
so long a larger model would keep another device busy, and this machine's cores are not what is measured. Counted is
the time from the first trial's start to the last one's end, with all workers loaded beforehand.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import ray

from mergesearch.controller import Controller
from mergesearch.evaluation.result import TrialResult
from mergesearch.listener import Listener
from mergesearch.session import open_store
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.ray_pool import RayPool
from tests.benchmarks.coordinator_study import study_of, with_search
from tests.benchmarks.tables import markdown
from tests.postgres import own_server

SECONDS = "MERGESEARCH_BENCHMARK_TRIAL_SECONDS"


def last_a_second() -> None:
    """In a Ray worker process, before anything runs there: trials take as long as the environment says."""
    evaluate = TrialEvaluator.evaluate

    def lasting(self: TrialEvaluator, *arguments: Any, **named: Any) -> TrialResult:
        end = time.perf_counter() + float(os.environ[SECONDS])
        result = evaluate(self, *arguments, **named)
        time.sleep(max(0.0, end - time.perf_counter()))
        return result

    TrialEvaluator.evaluate = lasting  # type: ignore[method-assign]


class Ends(Listener):
    """When trials started and ended."""

    def __init__(self) -> None:
        self.started_at: list[float] = []
        self.ended_at: list[float] = []

    def started(self, number: int, label: str) -> None:
        self.started_at.append(time.perf_counter())

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        self.ended_at.append(time.perf_counter())


def main() -> None:
    """Measure every number of workers in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--trials", type=int, default=20, help="of every worker")
    parser.add_argument("--seconds", type=float, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts = [int(n) for n in arguments.workers.split(",")]
    os.environ[SECONDS] = str(arguments.seconds)
    rows = []
    hook = {
        "worker_process_setup_hook": "tests.benchmarks.coordinator_ray.last_a_second",
        "env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])},  # where the hook is found
    }
    with own_server() as server, tempfile.TemporaryDirectory() as folder:
        try:
            ray.init(num_cpus=max(counts), include_dashboard=False, log_to_driver=False, runtime_env=hook)
            study = study_of(Path(folder), strategy="tpe", trials=1, enqueue=[])
            for workers in counts:
                server.execute(f"CREATE DATABASE ray_{workers}")
                trials, ends = arguments.trials * workers, Ends()
                study = with_search(study, strategy="tpe", trials=trials, enqueue=[])
                spec = study.evaluator_spec(device="cpu", threads=1)
                with open_store(study, server.url(f"ray_{workers}")) as store, RayPool(spec, workers) as pool:
                    while pool.free < workers:
                        pool.wait()
                    Controller(study, store, pool, ends).run()
                assert len(ends.ended_at) == trials
                took = ends.ended_at[-1] - ends.started_at[0]
                ideal = arguments.trials * arguments.seconds
                rows.append([workers, trials, f"{took:.2f}", f"{trials / took:.2f}", f"{ideal / took:.1%}"])
                print(rows[-1], f"load {psutil.getloadavg()[0]:.1f}", flush=True)
        finally:
            ray.shutdown()
    print(f"\n{arguments.seconds:g} s a trial, {psutil.cpu_count()} cores\n")
    print(markdown(["workers", "trials", "seconds", "trials/s", "of ideal"], rows))


if __name__ == "__main__":
    main()
