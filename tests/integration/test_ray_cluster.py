"""Workers on a cluster of several nodes (Ray's own utility runs them on this machine) that come and go in a study."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray._private.authentication import authentication_token_setup as authentication
from ray.cluster_utils import Cluster

from mergesearch.controller import Controller
from mergesearch.errors import WorkerError
from mergesearch.resolving import load_study
from mergesearch.session import open_pool, open_store, run_study
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.metrics import METRICS
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from mergesearch.workers.ray_pool import RayPool
from tests.commands import PATIENCE_SECONDS
from tests.controller_toys import Diary
from tests.tiny_studies import make_study

pytestmark = [
    pytest.mark.slow,  # they start clusters of several nodes
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]

NODE = {"num_cpus": 2, "memory": 1 << 30, "object_store_memory": 128 << 20}
WORKER_MEMORY = 700 << 20
"""A node has CPUs for two workers and memory for one."""
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_metrics_report_interval_ms": "500"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no workers, and no node yet; strangers are kept out by a token."""
    handler, before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    os.environ.update(ENVIRONMENT)
    authentication.enable_token_auth_by_default()
    authentication.ensure_token_if_auth_enabled()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    yield cluster
    cluster.shutdown()
    for name in ENVIRONMENT.keys() - before.keys():
        del os.environ[name]
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = make_study(tmp_path_factory.mktemp("study"))
    return load_study(made.change("search", to={"strategy": "grid", "trials": 4, "retries": 1}).file)


@contextmanager
def nodes(cluster: Cluster, count: int) -> Iterator[list[Any]]:
    """So many nodes for as long as the context lasts; those that were removed meanwhile are left out."""
    found = [cluster.add_node(**NODE) for _ in range(count)]
    yield found
    for node in [n for n in found if n in cluster.worker_nodes]:
        cluster.remove_node(node)


def wait_until(pool: WorkerPool, condition: Callable[[], bool]) -> None:
    """Let the pool do what it does while nobody has a task."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, pool
        assert pool.wait(timeout=0.5) == []


def node_of(pool: RayPool, worker: str) -> str:
    return pool._workers[worker].node


class Eventful(WorkerPool):
    """A pool to which something happens when the first trial of a number is given away."""

    def __init__(self, pool: RayPool, events: dict[int, Callable[[Task, str], None]]) -> None:
        self.pool, self.events = pool, events

    @property
    def idle(self) -> tuple[str, ...]:
        return self.pool.idle

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        assert isinstance(task, Task)
        event = self.events.pop(task.number, None)
        if event is None:
            return self.pool.submit(task, worker)
        name = worker or self.idle[0]
        event(task, name)
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        return self.pool.wait(timeout)

    def close(self) -> None:
        """The pool goes on for others."""


def test_a_study_goes_on_while_nodes_join_and_leave(
    cluster: Cluster, study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = study.evaluator_spec()
    with LocalPool(spec) as local, open_store(study, f"sqlite:///{tmp_path}/local.db") as store:
        Controller(study, store, local, Diary()).run()
        undisturbed = [(t.params, t.value) for t in store.trials()]
    assert len(undisturbed) == 4

    with (
        nodes(cluster, 1),
        caplog.at_level(logging.WARNING, "mergesearch"),
        RayPool(spec, 2, address=cluster.address, memory=WORKER_MEMORY) as pool,
    ):
        assert (pool.idle, pool.pending) == (("ray-0",), ("ray-1",))
        assert "ray-1: waiting for nodes with room, 1 CPU, 0.7 GiB of memory each" in caplog.text
        assert "has room for 1 such workers" in caplog.text

        def join(task: Task, worker: str) -> None:
            cluster.add_node(**NODE)
            wait_until(pool, lambda: pool.free == 2)
            assert node_of(pool, "ray-0") != node_of(pool, "ray-1")
            pool.submit(task, worker)

        def leave(task: Task, worker: str) -> None:
            (node,) = [n for n in cluster.worker_nodes if n.node_id == node_of(pool, worker)]
            process = psutil.Process(pool.pids[worker])
            process.suspend()  # no machine is so fast that the trial ends first
            pool.submit(task, worker)
            cluster.remove_node(node)
            with suppress(psutil.NoSuchProcess):
                process.kill()

        diary = Diary()
        with open_store(study, f"sqlite:///{tmp_path}/ray.db") as store:
            Controller(study, store, Eventful(pool, {1: join, 2: leave}), diary).run()
            assert store.unfinished() == []
            assert [(t.params, t.value) for t in store.trials()] == undisturbed
        assert [(h[1], h[3]) for h in diary.heard if h[0] == "failed"] == [(2, True)]
        wait_until(pool, lambda: len(pool.pending) == 1)
        assert pool.free == 1
        with nodes(cluster, 1):
            wait_until(pool, lambda: pool.free == 2)
            assert pool.pending == ()
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    assert not ray.is_initialized()


def test_auto_has_as_many_workers_as_the_cluster_has_room_for(cluster: Cluster, study: Study) -> None:
    with (
        nodes(cluster, 2) as (node, _),
        RayPool(study.evaluator_spec(), "auto", address=cluster.address, memory=WORKER_MEMORY) as pool,
    ):
        wait_until(pool, lambda: pool.free == 2)
        there = {node_of(pool, worker) for worker in pool.idle}
        assert len(there) == 2
        cluster.remove_node(node)
        wait_until(pool, lambda: pool.free == 1 and pool.pending == ())
        assert {node_of(pool, worker) for worker in pool.idle} == there - {node.node_id}
        with nodes(cluster, 1):
            wait_until(pool, lambda: pool.free == 2)


def scraped() -> str:
    """What Prometheus would read from the nodes."""
    pages = []
    for node in ray.nodes():
        if node["Alive"]:
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with suppress(OSError), urllib.request.urlopen(address, timeout=60) as page:
                pages.append(page.read().decode())
    return "\n".join(pages)


NEVER_HERE = {"mergesearch_gpu_memory_bytes", "mergesearch_out_of_memory"}
"""On a CPU that has memory enough."""


def test_prometheus_finds_every_metric_after_two_trials(cluster: Cluster, study: Study) -> None:
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray's agents export metrics with ray[default]")
    first, *_, last = study.space.grid()  # they differ in the upper layer alone
    expected = {m.name: m.exported for m in METRICS if m.name not in NEVER_HERE}
    with nodes(cluster, 1), RayPool(study.evaluator_spec(), 1, address=cluster.address) as pool:
        for number, point in enumerate((first, {**last, min(first): first[min(first)]})):
            pool.submit(Task(number, study.recipe(point)))
            (outcome,) = pool.wait()
            assert outcome.result is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while missing := {name for name, exported in expected.items() if f"\n{exported}{{" not in (page := scraped())}:
            assert time.monotonic() < deadline, missing
            time.sleep(0.2)
    trials = [line for line in page.splitlines() if line.startswith("ray_mergesearch_trials_total{")]
    assert [('study="tiny"' in t, 'outcome="complete"' in t, float(t.split()[-1])) for t in trials] == [(True, True, 2)]
    assert set(re.findall(r'^ray_mergesearch_phase_seconds_total.*phase="(\w+)"', page, re.M)) >= {"merge", "encode"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_gpus_of_other_machines_are_not_left_idle_unasked(cluster: Cluster, study: Study) -> None:
    node = cluster.add_node(**NODE, num_gpus=1)
    try:
        content = study.parsed.content
        for device, said in (
            ("auto", r"has 1 GPUs.*`device: cuda`"),
            ("cuda", "NVIDIA|CUDA"),  # the worker was placed on the GPU that Ray was told of and there is not
        ):
            workers = type(content.workers)(kind="ray", count="auto", address=cluster.address, device=device)
            asked = replace(study.parsed, content=content.model_copy(update={"workers": workers}))
            with pytest.raises(WorkerError, match=said), open_pool(replace(study, parsed=asked)) as pool:
                wait_until(pool, lambda: pool.free > 0)
    finally:
        cluster.remove_node(node)


def test_a_run_that_waits_for_its_first_node_hears_what_is_wanted(
    cluster: Cluster, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "6")
    content = study.parsed.content
    workers = type(content.workers)(kind="ray", count=1, address=cluster.address, device="cpu")
    asked = replace(study, parsed=replace(study.parsed, content=content.model_copy(update={"workers": workers})))
    url = f"sqlite:///{tmp_path}/study.db"

    class Drained(Diary):
        def planned(self, sources: str) -> None:
            with StudyStore.open(url, study.name, None, exclusive=False) as reader:
                reader.want("drain")

    with open_store(asked, url) as store:
        assert run_study(asked, store, Drained()).reason == "ended, as was asked for"
