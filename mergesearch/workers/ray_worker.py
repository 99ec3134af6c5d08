"""What runs in a Ray worker process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import ray

from mergesearch.errors import MergesearchError
from mergesearch.workers.evaluator import TrialEvaluator, attempt
from mergesearch.workers.evaluator_spec import EvaluatorSpec
from mergesearch.workers.metrics import readings
from mergesearch.workers.node_files import with_files_here
from mergesearch.workers.pool import Outcome, ScreeningTask, Task
from mergesearch.workers.ray_metrics import RayMetrics


class RayWorker:
    """An actor that opens the source files itself and keeps the weights resident.

    Weights never travel through Ray's object store: the page cache shares the files between the actors of a node, and
    an actor that is rebuilt needs nobody's object. All calls but `ping` are answered by one thread, in turn, so what
    is set per thread (as OpenMP's threads are) holds for trials, too.
    """

    def __init__(self) -> None:
        self._evaluator: TrialEvaluator | None = None
        self._metrics: RayMetrics | None = None

    def locate(self) -> tuple[str, int]:
        """The node that the actor was given, and its process there."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def load(self, spec: EvaluatorSpec, files: Mapping[Path, str]) -> str:
        """Load the sources, unless they are loaded for another study; why they cannot be, or empty."""
        # Tokenizers have a thread pool beside torch's, made when they are first used: of all cores, unless told.
        os.environ.setdefault("RAYON_NUM_THREADS", str(spec.threads))
        node = f"{platform.node()} ({ray.util.get_node_ip_address()})"
        try:
            here = with_files_here(spec, files, node)
            if self._evaluator is not None and self._evaluator.spec.resident == here.resident:
                self._evaluator.adapt(here)
            else:
                self._evaluator = None  # before another one needs the memory
                self._evaluator = TrialEvaluator(here)
        except MergesearchError as error:
            return str(error)
        self._metrics = RayMetrics()
        return ""

    def evaluate(self, task: Task | ScreeningTask, worker: str) -> Outcome:
        """What became of the task."""
        assert self._evaluator is not None
        assert self._metrics is not None
        started, reuse = time.perf_counter(), self._evaluator.model.reuse
        hits, misses = (reuse.hits, reuse.misses) if reuse else (0, 0)
        outcome = attempt(self._evaluator, task, worker)
        seconds = time.perf_counter() - started
        if reuse:
            hits, misses = reuse.hits - hits, reuse.misses - misses
        study = self._evaluator.spec.study
        self._metrics.record(readings(outcome, study, seconds=seconds, hits=hits, misses=misses))
        return outcome

    def ping(self) -> None:
        """Answered at once, whatever else the worker does: the process lives and its machine can be reached."""
