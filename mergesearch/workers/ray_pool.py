"""Ray actors as workers, on a cluster that grows and shrinks and loses nodes."""

from __future__ import annotations

import itertools
import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from mergesearch.errors import WorkerError
from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec
from mergesearch.workers.node_files import files_named
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from mergesearch.workers.ray_cluster import Request, check_device, check_room, connect, evidence, kill, nodes, room
from mergesearch.workers.ray_worker import RayWorker

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A worker that answers nothing for so long has lost its trial; MERGESEARCH_LEASE_SECONDS overrides."""
PINGS_PER_LEASE = 6
LEASES_TO_LOAD = 5
"""A worker that loads sources and texts may be silent for longer: some libraries let no other thread run meanwhile."""
MOST_FAILED_BUILDS = 3
"""So often in a row a worker may die while it loads the sources; then it is given up."""
PATIENCE_SECONDS = 60.0
"""After so long without any worker the log says what is waited for."""
LOOKING_SECONDS = 2.0
"""How often the pool looks which nodes there are."""


@dataclass(eq=False)
class _Worker:
    """One actor, and the call that it has to answer: where it is, that it has loaded the sources, a task's outcome.

    Attributes:
        name: of the worker; its successors bear it, too.
        actor: Ray's handle.
        call: what it has to answer; None while it is idle.
        node: where it is; empty while it waits for a node with room for it.
        pid: its process there.
        loaded: it has loaded the sources.
        task: what it is evaluating.
        ping: a further call, which it answers whatever else it does.
        silent: for how long it has answered nothing while it was listened to, in seconds.
    """

    name: str
    actor: Any
    call: Any
    node: str = ""
    pid: int = 0
    loaded: bool = False
    task: Task | ScreeningTask | None = None
    ping: Any = None
    silent: float = 0.0


class RayPool(WorkerPool):
    """Actors as workers: `count` of them, or as many as the cluster has room for at any time (`auto`).

    They run on an existing cluster (`address`), on the one that this process is connected to, or on one that is
    started on this machine and ends with the pool. The pool is open as soon as one worker has loaded the sources; the
    others join when they have. At an `address`, workers without room wait for nodes, which an autoscaler may add.

    Ray is asked to deliver each call at most once and to rebuild nothing: an actor that dies is replaced here, and
    whether its trial is tried again is the controller's decision. So is one that answers no ping for a lease, because
    its process was stopped or its machine hangs: it is killed, and what it answers after all is never heard.

    Args:
        spec: what workers evaluate with.
        count: how many.
        address: an existing cluster.
        gpus: of every worker, where merges are evaluated on a CUDA device.
        memory: bytes that every worker takes of its node's memory; Ray puts no more on a node than it has. 0 leaves
            memory out of account.
        any_device: nobody has chosen the device of `spec`, which is this machine's, for the nodes at `address`.
        at_once: open before any worker is idle; what else is said of opening, `wait` does then.

    Attributes:
        lease: after so many seconds without an answer a worker has lost its task.

    Raises:
        WorkerError: no cluster at `address`, too few CPUs or GPUs for the workers where no node can be waited for,
            GPUs that nobody has said are to be used or not, or no worker can load the sources.
    """

    def __init__(
        self,
        spec: EvaluatorSpec,
        count: int | Literal["auto"],
        *,
        address: str | None = None,
        gpus: int = 1,
        memory: int = 0,
        any_device: bool = False,
        at_once: bool = False,
    ) -> None:
        self._spec, self._files, self._count = spec, files_named(spec), count
        self._request = Request(spec.threads, gpus if spec.evaluation.device.startswith("cuda") else 0, memory)
        self.lease = float(os.environ.get("MERGESEARCH_LEASE_SECONDS") or LEASE_SECONDS)
        self._workers: dict[str, _Worker] = {}
        self._names = (f"ray-{i}" for i in itertools.count())
        self._failed_builds: dict[str, int] = {}
        self._given_up = 0
        self._next_ping = self._next_look = 0.0
        self._next_warning = time.monotonic() + PATIENCE_SECONDS
        self._started_here = not ray.is_initialized()
        if self._started_here:
            connect(address, 1 if count == "auto" else count * spec.threads)
        try:
            self._actor_class = ray.remote(
                max_restarts=0, max_task_retries=0, concurrency_groups={"pings": 1}, **self._request.options
            )(RayWorker)
            if address is not None and any_device:
                check_device(self._request)
            if address is None:
                check_room(1 if count == "auto" else count, self._request)
            for _ in range(self._wanted()):
                self._start(next(self._names))
            if room(self._request) < len(self._workers):
                self._warn()
            while not self.free and not at_once:
                self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def idle(self) -> tuple[str, ...]:
        """Workers that have loaded the sources and have no task."""
        return tuple(w.name for w in self._workers.values() if w.call is None)

    @property
    def pids(self) -> dict[str, int]:
        """Process id, on its own machine, of every worker that has loaded the sources."""
        return {w.name: w.pid for w in self._workers.values() if w.loaded}

    @property
    def pending(self) -> tuple[str, ...]:
        """Workers that wait for a node with room for them."""
        return tuple(w.name for w in self._workers.values() if not w.node)

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        """Send the task to an idle worker."""
        chosen = self._workers[worker or self.idle[0]]
        chosen.task, chosen.call = task, chosen.actor.evaluate.remote(task, chosen.name)
        return chosen.name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Block until tasks have outcomes, until a further worker is idle, or for `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        assert end is not None or any(w.call is not None for w in self._workers.values())
        before = set(self.idle)
        while True:
            left = self.lease if end is None else max(0.0, end - time.monotonic())
            outcomes = self._turn(min(left, self.lease / PINGS_PER_LEASE, LOOKING_SECONDS))
            if outcomes or set(self.idle) - before or (end is not None and time.monotonic() >= end):
                return outcomes

    def rest(self, seconds: float) -> None:
        """Replace workers that die, and follow the nodes, so that nobody is given a task who is long gone."""
        outcomes = self.wait(seconds)
        assert not outcomes

    def adapt(self, spec: EvaluatorSpec, progress: BatchProgress | None = None) -> None:  # noqa: ARG002 - local
        """Have idle workers keep sources and model; those that are loading or at work begin anew."""
        self._spec, self._files = spec, files_named(spec)
        for worker in list(self._workers.values()):
            if worker.call is None:
                worker.loaded = False
                worker.call = worker.actor.load.remote(self._spec_for(worker.node), self._files)
            elif worker.node:  # others are told the new specification when they are somewhere
                kill(worker.actor)
                self._start(worker.name)
        while not self.free:
            self.wait()

    def close(self) -> None:
        """End the actors; end Ray too where this pool started it."""
        if ray.is_initialized():
            for worker in self._workers.values():
                kill(worker.actor)
            if self._started_here:
                ray.shutdown()
        self._workers.clear()
        self._started_here = False

    def _turn(self, seconds: float) -> list[Outcome]:
        """Listen for so long, or until something is heard, and do what has to be done about it."""
        outcomes = self._look_at_nodes()
        self._send_pings()
        waited = [(w.call, w) for w in self._workers.values() if w.call is not None]
        waited += [(w.ping, w) for w in self._workers.values() if w.ping is not None]
        started = time.monotonic()
        answered: set[Any] = set()
        if waited:
            references = [reference for reference, _ in waited]
            if ray.wait(references, num_returns=1, timeout=seconds)[0]:
                answered = set(ray.wait(references, num_returns=len(references), timeout=0)[0])
        else:
            time.sleep(seconds)
        # Only time in which this process listened: it may itself have been stopped, and its workers are not to blame.
        listened = min(time.monotonic() - started, seconds)
        outcomes += [self._hear(w, reference) for reference, w in waited if reference in answered]
        for worker in [w for w in self._workers.values() if w.node]:
            worker.silent += listened
            lease = self.lease if worker.loaded else LEASES_TO_LOAD * self.lease
            if worker.silent > lease:
                why = f"{worker.name} answered nothing for {lease:g} seconds (pid: {worker.pid})"
                outcomes.append(self._lost(worker, f"{why}: it was stopped, or its machine hangs"))
        if self.pids:
            self._next_warning = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > self._next_warning:
            self._warn()
        return [outcome for outcome in outcomes if outcome is not None]

    def _hear(self, worker: _Worker, reference: Any) -> Outcome | None:
        """A worker has answered a call or a ping, or Ray says why it never will."""
        if self._workers.get(worker.name) is not worker:
            return None  # it was lost with its other call
        try:
            answer = ray.get(reference)
        except RayTaskError as error:  # what travels could not be read, or our own code failed; the worker is well
            return self._stumbled(worker, error)
        except RayError as error:  # not only RayActorError: Ray also ends workers when memory runs out
            if reference is worker.ping and not isinstance(error, ActorDiedError):
                worker.ping = None  # unreachable for the moment: the lease decides for how long
                return None
            return self._lost(worker, f"{worker.name} died: {evidence(error)}", error)
        worker.silent = 0.0
        if reference is worker.ping:
            worker.ping = None
        elif not worker.node:
            worker.node, worker.pid = answer
            worker.call = worker.actor.load.remote(self._spec_for(worker.node), self._files)
        elif not worker.loaded:
            worker.call = None
            worker.loaded = not answer
            if answer:
                self._give_up(worker, answer)
            else:
                self._failed_builds.pop(worker.name, None)
        else:
            worker.call = worker.task = None
            outcome: Outcome = answer
            return outcome
        return None

    def _stumbled(self, worker: _Worker, error: RayTaskError) -> Outcome | None:
        if worker.task is None:  # nothing but a defect of ours, or of the node's installation, fails here
            self._give_up(worker, evidence(error))
            return None
        task, worker.call, worker.task = worker.task, None, None
        return Outcome(task, worker.name, failure=evidence(error))

    def _lost(self, worker: _Worker, why: str, error: RayError | None = None) -> Outcome | None:
        """Replace a worker, unless it dies too often while it loads; its task comes back."""
        if not worker.loaded and not self._node_left(worker, error):
            self._failed_builds[worker.name] = self._failed_builds.get(worker.name, 0) + 1
        if self._failed_builds.get(worker.name, 0) >= MOST_FAILED_BUILDS:
            self._give_up(worker, why)
            return None
        logger.warning("worker %s; another one takes its place", why)
        # A worker that was only unreachable must not go on beside its successor.
        kill(worker.actor)
        self._start(worker.name)
        return None if worker.task is None else Outcome(worker.task, worker.name, failure=why, worker_died=True)

    def _node_left(self, worker: _Worker, error: RayError | None) -> bool:
        """Whether a worker died with its node, or was about to come to one that died."""
        if worker.node:
            return worker.node not in nodes()
        return "node has died" in str(error)

    def _give_up(self, worker: _Worker, problem: str) -> None:
        logger.error("worker %s is given up, it cannot load the sources: %s", worker.name, problem)
        kill(self._workers.pop(worker.name).actor)
        self._given_up += 1
        if not self._workers:
            raise WorkerError(
                f"no Ray worker can load the sources: {problem}\n"
                "Mend the cause and run the same command again; what is recorded stays."
            )

    def _start(self, name: str) -> None:
        actor = self._actor_class.remote()
        self._workers[name] = _Worker(name, actor, call=actor.locate.remote())

    def _wanted(self) -> int:
        """How many workers there should be now. One waits even where there is no room: it makes an autoscaler act."""
        return max(1, room(self._request) - self._given_up) if self._count == "auto" else self._count

    def _look_at_nodes(self) -> list[Outcome | None]:
        """Miss the workers of nodes that have left; with `auto`, have as many as there is room for now."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + LOOKING_SECONDS
        there = nodes()
        left = [w for w in self._workers.values() if w.node and w.node not in there]
        outcomes = [self._lost(w, f"{w.name} (pid: {w.pid}) is gone: its node has left the cluster") for w in left]
        wanted = self._wanted() if self._count == "auto" else len(self._workers)
        while len(self._workers) < wanted:
            self._start(next(self._names))
        for name in self.pending[::-1][: max(0, len(self._workers) - wanted)]:
            kill(self._workers.pop(name).actor)
        return outcomes

    def _send_pings(self) -> None:
        if time.monotonic() < self._next_ping:
            return
        self._next_ping = time.monotonic() + self.lease / PINGS_PER_LEASE
        for worker in self._workers.values():
            if worker.node and worker.ping is None:
                worker.ping = worker.actor.ping.options(concurrency_group="pings").remote()

    def _spec_for(self, node: str) -> EvaluatorSpec:
        """What a worker is told, with the number of those that share its machine."""
        fitting = self._request.fitting(nodes().get(node, {}))
        workers = fitting if self._count == "auto" else min(fitting, self._count)
        return replace(self._spec, workers=max(1, workers))

    def _warn(self) -> None:
        """Say what is waited for."""
        self._next_warning = time.monotonic() + PATIENCE_SECONDS
        loading = [w.name for w in self._workers.values() if w.node and not w.loaded]
        if self.pending:
            logger.warning(
                "%s: waiting for nodes with room, %s each; the cluster has room for %d such workers (ray status)",
                ", ".join(self.pending),
                self._request,
                room(self._request),
            )
        if loading:
            logger.warning("%s: loading the sources", ", ".join(loading))
