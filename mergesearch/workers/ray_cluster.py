"""The Ray cluster: joining or starting one, how many workers its nodes have room for, and what it says of deaths."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from mergesearch.errors import WorkerError

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 << 20
"""Recipes and scores are all that travels, so Ray need not set aside a third of the memory."""
EVIDENCE_CHARACTERS = 300
"""Of what Ray says of one death."""
AUTHENTICATION_LOG = "ray._private.authentication.authentication_token_setup"
"""The only warning that `ray.init` writes there says that token authentication is on, which is as it should be."""


@dataclass(frozen=True)
class Request:
    """What a worker asks Ray for.

    Attributes:
        cpus: one per thread.
        gpus: none where merges are evaluated on the CPU.
        memory: bytes of the node's memory, so that no more workers come to a node than it can hold; 0 asks for none.
    """

    cpus: int
    gpus: int = 0
    memory: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As `ray.remote` takes it."""
        gpus = {"num_gpus": self.gpus} if self.gpus else {}
        return {"num_cpus": self.cpus, **gpus, **({"memory": self.memory} if self.memory else {})}

    def fitting(self, node: Mapping[str, float]) -> int:
        """How many such workers a node of these resources has room for when it has nothing else to do."""
        needed = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.get(name, 0) // amount) for name, amount in needed.items() if amount)

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPUs" if self.cpus > 1 else "1 CPU"]
        if self.gpus:
            parts.append(f"{self.gpus} GPUs" if self.gpus > 1 else "1 GPU")
        if self.memory:
            parts.append(f"{self.memory / (1 << 30):.1f} GiB of memory")
        return ", ".join(parts)


def connect(address: str | None, cpus: int) -> None:
    """Join the cluster at `address`, or start one with at least so many CPUs on this machine, out of others' reach.

    Raises:
        WorkerError: neither is possible; with what Ray says.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray otherwise warns that it will stop hiding GPUs from actors that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger(AUTHENTICATION_LOG).setLevel(logging.ERROR)
    try:
        with _sigterm_kept():
            if address is None:
                with _loopback_only():
                    ray.init(
                        address="local",  # not the cluster that RAY_ADDRESS names: nobody asked for it
                        num_cpus=max(cpus, os.cpu_count() or 1),
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        logging_level=logging.WARNING,
                        log_to_driver=False,
                    )
            else:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        where = f"at {address!r}" if address else "on this machine"
        remedy = "See the log in /tmp/ray/session_latest/logs"
        if address:
            remedy = "Look at it: ray status. If it wants a token: RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN"
        raise WorkerError(f"no Ray cluster {where}: {evidence(error)}. {remedy}") from error


def check_room(count: int, request: Request) -> None:
    """Refuse more workers than a cluster that does not grow has CPUs and GPUs for.

    Raises:
        WorkerError: with what they need and what is there.
    """
    there = ray.cluster_resources()
    for needed, label in ((count * request.cpus, "CPU"), (count * request.gpus, "GPU")):
        if needed > there.get(label, 0):
            raise WorkerError(
                f"{count} workers need {needed} {label}s, the Ray cluster has {there.get(label, 0):g}. "
                "Lower `workers.count` or `workers.threads`."
            )


def check_device(request: Request) -> None:
    """Refuse to leave a cluster's GPUs idle because the machine that asks for workers has none.

    Raises:
        WorkerError: with what to write.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus and not request.gpus:
        raise WorkerError(
            f"the Ray cluster has {gpus:g} GPUs, but torch finds none on this machine, so `workers.device: auto` means "
            "the CPU. Write `device: cuda` under `workers`, or `device: cpu` if that is meant."
        )


def nodes() -> dict[str, dict[str, float]]:
    """The resources of every node that is alive, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def room(request: Request) -> int:
    """How many such workers the whole cluster has room for when it has nothing else to do."""
    return sum(request.fitting(resources) for resources in nodes().values())


def kill(actor: Any) -> None:
    """End an actor for good. One whose process is stopped or hangs, Ray's agent on its node ends seconds later."""
    with suppress(RayError, ValueError):  # it is dead already
        ray.kill(actor, no_restart=True)


def evidence(error: BaseException) -> str:
    """What Ray says of an error in one line, without its list of things that might have been the cause."""
    if isinstance(error, RayTaskError) and error.cause is not None:  # its own text is a traceback, and long
        return " ".join(f"{type(error.cause).__name__}: {error.cause}".split())[:EVIDENCE_CHARACTERS]
    said = " ".join(line.strip() for line in str(error).splitlines())
    for noise in ("The actor died unexpectedly before finishing this task.", "class_name: RayWorker"):
        said = said.replace(noise, "")
    said = re.split(r"Some common causes|There are some potential root causes", said)[0]
    said = re.sub(r"\b(actor_id|namespace): \S+", "", said)
    return " ".join(said.split())[:EVIDENCE_CHARACTERS] or type(error).__name__


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
