"""Ray actors as workers: each opens the source files itself and keeps the weights resident.

Weights never travel through Ray's object store: the page cache shares the files between the actors of a node, and
an actor that is rebuilt needs nobody's object.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from mergesearch.errors import MergesearchError, WorkerError
from mergesearch.workers.evaluator import EvaluatorSpec, TrialEvaluator, attempt
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool

logger = logging.getLogger(__name__)

MOST_FAILED_BUILDS = 3
"""So often in a row a worker may die while it loads the sources; then it is given up."""
PATIENCE_SECONDS = 60
"""After so long without any event the log says what is waited for."""
OBJECT_STORE_BYTES = 128 << 20
"""Recipes and scores are all that travels, so Ray need not set aside a third of the memory."""
EVIDENCE_CHARACTERS = 300
"""Of what Ray says of one death."""


class _Actor:
    """What runs in a Ray worker process."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self._evaluator: TrialEvaluator | None = None
        self._problem = ""
        # Tokenizers have a thread pool beside torch's, made when they are first used: of all cores, unless told.
        os.environ.setdefault("RAYON_NUM_THREADS", str(spec.threads))
        try:
            self._evaluator = TrialEvaluator(spec)
        except MergesearchError as error:
            self._problem = str(error)

    def ready(self) -> tuple[int, str]:
        """The process id, once the sources are loaded, and why they cannot be (empty when they are)."""
        return os.getpid(), self._problem

    def evaluate(self, task: Task | ScreeningTask, worker: str) -> Outcome:
        """What became of the task."""
        assert self._evaluator is not None
        return attempt(self._evaluator, task, worker)


class RayPool(WorkerPool):
    """Up to `count` actors as workers.

    They run on an existing cluster (`address`), on the one that this process is connected to, or on one that is
    started on this machine and ends with the pool.

    Ray is asked to deliver each call at most once and to rebuild nothing: an actor that dies is replaced here, and
    whether its trial is tried again is the controller's decision. The pool is open as soon as one worker has
    loaded the sources; the others join when they have.

    Raises:
        WorkerError: no cluster at `address`, too few CPUs or GPUs for the actors, or no worker can load the
            sources.
    """

    def __init__(self, spec: EvaluatorSpec, count: int, *, address: str | None = None) -> None:
        self._started_here = not ray.is_initialized()
        self._actors: dict[str, Any] = {}
        self._building: dict[Any, str] = {}
        self._running: dict[Any, tuple[str, Task | ScreeningTask]] = {}
        self._failed_builds: dict[str, int] = {}
        self._pids: dict[str, int] = {}
        self._spec = spec
        if self._started_here:
            _connect(address, count, spec.threads)
        try:
            resources: dict[str, Any] = {"num_cpus": spec.threads}
            if spec.evaluation.device.startswith("cuda"):
                resources["num_gpus"] = 1
            _check_resources(count, resources)
            self._actor_class = ray.remote(max_restarts=0, max_task_retries=0, **resources)(_Actor)
            for i in range(count):
                self._build(f"ray-{i}")
            while not self.free:
                self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def idle(self) -> tuple[str, ...]:
        """Workers that have loaded the sources and have no task."""
        busy = {name for name, _ in self._running.values()} | set(self._building.values())
        return tuple(name for name in self._actors if name not in busy)

    @property
    def pids(self) -> dict[str, int]:
        """Process id, on its own machine, of every worker that has loaded the sources."""
        building = set(self._building.values())
        return {name: pid for name, pid in self._pids.items() if name not in building}

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        """Send the task to an idle worker."""
        name = worker or self.idle[0]
        self._running[self._actors[name].evaluate.remote(task, name)] = (name, task)
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Block until a worker answers, dies or has been rebuilt, or for a while."""
        pending = [*self._running, *self._building]
        assert pending
        while True:
            done, _ = ray.wait(pending, num_returns=1, timeout=min(PATIENCE_SECONDS, timeout or PATIENCE_SECONDS))
            if done or timeout is not None:
                break
            if self._building and not self._running:
                cpus = ray.available_resources().get("CPU", 0)
                names = ", ".join(self._building.values())
                logger.warning("waiting for %s to start and load the sources; %g CPUs are free", names, cpus)
        outcomes = []
        for reference in done:
            if reference in self._building:
                self._built(reference)
            else:
                outcomes.append(self._outcome(reference))
        return outcomes

    def close(self) -> None:
        """End the actors; end Ray too where this pool started it."""
        if ray.is_initialized():
            for actor in self._actors.values():
                _kill(actor)
            if self._started_here:
                ray.shutdown()
        for known in (self._actors, self._building, self._running, self._pids):
            known.clear()
        self._started_here = False

    def _outcome(self, reference: Any) -> Outcome:
        name, task = self._running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as error:  # what travels could not be read; the worker itself is well
            return Outcome(task, name, failure=_evidence(error))
        except RayError as error:  # not only RayActorError: Ray also ends workers when memory runs out
            logger.warning("worker %s died during %s", name, task)
            evidence = f"{name} died: {_evidence(error)}"
            self._rebuild(name)
            return Outcome(task, name, failure=evidence, worker_died=True)
        return outcome

    def _build(self, name: str) -> None:
        actor = self._actor_class.remote(self._spec)
        self._actors[name] = actor
        self._building[actor.ready.remote()] = name

    def _rebuild(self, name: str) -> None:
        # A worker that was only unreachable must not go on beside its successor.
        _kill(self._actors[name])
        self._build(name)

    def _built(self, reference: Any) -> None:
        """A worker is ready, or has failed to become so: try again, give it up, or raise for the last one."""
        name = self._building.pop(reference)
        tries = self._failed_builds[name] = self._failed_builds.get(name, 0) + 1
        try:
            self._pids[name], problem = ray.get(reference)
        except RayError as error:
            problem = f"{name} died: {_evidence(error)}"
            if tries < MOST_FAILED_BUILDS:
                logger.warning("loading the sources, worker %s; trying again", problem)
                self._rebuild(name)
                return
        if not problem:
            self._failed_builds[name] = 0
            return
        logger.error("worker %s is given up, it cannot load the sources: %s", name, problem)
        _kill(self._actors.pop(name))
        if not self._actors:
            raise WorkerError(
                f"no Ray worker can load the sources: {problem}\n"
                "Mend the cause and run the same command again; what is recorded stays."
            )


def _connect(address: str | None, count: int, threads: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray otherwise warns that it will stop hiding GPUs from actors that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _sigterm_kept():
            if address is None:
                cpus = max(count * threads, os.cpu_count() or 1)
                with _loopback_only():
                    ray.init(
                        address="local",  # not the cluster that RAY_ADDRESS names: nobody asked for it
                        num_cpus=cpus,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        logging_level=logging.WARNING,
                        log_to_driver=False,
                    )
            else:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address!r}" if address else "on this machine"
        remedy = "Look at it: ray status" if address else "See the log in /tmp/ray/session_latest/logs"
        raise WorkerError(f"no Ray cluster {where}: {_evidence(error)}. {remedy}") from error


@contextmanager
def _loopback_only() -> Iterator[None]:
    """A cluster that Ray starts meanwhile listens on the loopback address, out of reach of other machines.

    On macOS and Windows that is Ray's default. On Linux it listens on all interfaces, and `_node_ip_address` is
    no help: Ray puts the machine's outer address in place of 127.0.0.1.
    """
    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:
        logger.warning("this version of Ray cannot be kept from listening on all network interfaces")
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM over and ends the process with code 1; ours goes on meaning what it meant."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _check_resources(count: int, resources: dict[str, Any]) -> None:
    there = ray.cluster_resources()
    for key, label in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        needed = count * resources.get(key, 0)
        if needed > there.get(label, 0):
            raise WorkerError(
                f"{count} workers need {needed:g} {label}s, the Ray cluster has {there.get(label, 0):g}. "
                "Lower `workers.count` or `workers.threads`."
            )


def _kill(actor: Any) -> None:
    with suppress(RayError, ValueError):  # it is dead already
        ray.kill(actor, no_restart=True)


def _evidence(error: BaseException) -> str:
    """What Ray says of an error in one line, without its list of things that might have been the cause."""
    said = " ".join(line.strip() for line in str(error).splitlines())
    for noise in ("The actor died unexpectedly before finishing this task.", "class_name: _Actor"):
        said = said.replace(noise, "")
    said = re.split(r"Some common causes|There are some potential root causes", said)[0]
    said = re.sub(r"\b(actor_id|namespace): \S+", "", said)
    return " ".join(said.split())[:EVIDENCE_CHARACTERS] or type(error).__name__
