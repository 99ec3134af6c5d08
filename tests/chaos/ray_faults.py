"""What may happen to the workers of a study on a Ray cluster; see `faults`."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.chaos.faults import Fault
from tests.chaos.world import World

NODE = {"num_cpus": 1, "memory": 1 << 30, "object_store_memory": 128 << 20}


class RayFaults:
    """Faults of a cluster whose every node but the head has room for one worker."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def all(self) -> tuple[Fault, ...]:
        return (self.kill_worker, self.stop_worker, self.kill_node)

    def kill_worker(self, world: World) -> bool:
        """SIGKILL of a worker; its trial is tried again, and another worker takes its place."""
        return self._to_a_worker(world, signal.SIGKILL) is not None

    def stop_worker(self, world: World) -> bool:
        """SIGSTOP of a worker until it is given up for lost, then SIGCONT."""
        stopped = self._to_a_worker(world, signal.SIGSTOP)
        if stopped is None:
            return False
        try:
            world.wait_until(lambda: not alive(stopped), "a stopped worker to be replaced", patience=120)
        finally:
            with suppress(psutil.NoSuchProcess):
                stopped.send_signal(signal.SIGCONT)
        return True

    def kill_node(self, world: World) -> bool:
        """SIGKILL of all processes of a node; another one joins."""
        nodes: list[Any] = list(self.cluster.worker_nodes)
        node = nodes[int(world.rng.integers(len(nodes)))]

        def kill() -> None:
            raylet = raylet_of(node)
            for process in [raylet, *raylet.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

        if not world.soon(kill):
            return False
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**NODE)
        return True

    def workers(self) -> list[psutil.Process]:
        """The processes that evaluate; on their nodes they are named after the task that they have."""
        found = []
        for node in self.cluster.worker_nodes:
            with suppress(psutil.NoSuchProcess):
                for process in raylet_of(node).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        name = " ".join(process.cmdline())
                        if name.startswith("ray::") and not name.startswith("ray::IDLE"):
                            found.append(process)
        return found

    def _to_a_worker(self, world: World, number: signal.Signals) -> psutil.Process | None:
        harmed: list[psutil.Process] = []

        def act() -> None:
            workers = self.workers()
            if workers:
                victim = workers[int(world.rng.integers(len(workers)))]
                os.kill(victim.pid, number)
                harmed.append(victim)

        while not harmed and world.soon(act):  # until there is one to harm
            pass
        return harmed[0] if harmed else None


def raylet_of(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # and another process with its number is another one
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
