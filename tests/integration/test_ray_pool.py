"""Ray actors as workers, on a real cluster of one machine: the same scores, and deaths that lose nothing."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from mergesearch.controller import Controller, Listener
from mergesearch.errors import WorkerError
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import Outcome, Task, WorkerPool
from mergesearch.workers.ray_pool import RayPool
from tests.commands import Command
from tests.tiny_models import make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    made = make_study(tmp_path_factory.mktemp("study"))
    return made.change("search", to={"strategy": "grid", "trials": 4, "retries": 1})


@pytest.fixture(scope="module")
def study(tiny: TinyStudy) -> Study:
    return load_study(tiny.file)


@pytest.fixture(scope="module")
def pool(cluster: None, study: Study) -> Iterator[RayPool]:
    """Two workers that several tests share."""
    with RayPool(study.evaluator_spec(), 2) as pool:
        wait_for_workers(pool)
        yield pool


def wait_for_workers(pool: RayPool, count: int = 2) -> None:
    while pool.free < count:
        assert pool.wait() == []


def recipes(study: Study) -> list[MergeRecipe]:
    return [study.recipe(params) for params in list(study.space.grid())[:4]]


def evaluate(pool: WorkerPool, wanted: list[MergeRecipe]) -> dict[int, Outcome]:
    left = [Task(i, recipe) for i, recipe in enumerate(wanted)]
    found: dict[int, Outcome] = {}
    while len(found) < len(wanted):
        while left and pool.free:
            pool.submit(left.pop(0))
        for outcome in pool.wait():
            assert outcome.task.number not in found
            found[outcome.task.number] = outcome
    return found


def gone(processes: list[psutil.Process]) -> bool:
    # Ray's agents notice within a minute that whoever started them was killed.
    _, alive = psutil.wait_procs(processes, timeout=120)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses that other programs can reach them at."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


class Killer(Listener):
    """A listener that kills the worker of every trial in `victims`, as soon as it has the trial.

    Workers are stopped until then, so that none is done before it is killed.
    """

    def __init__(self, store: StudyStore, pool: RayPool, victims: dict[int, int]) -> None:
        self.store, self.pool, self.victims = store, pool, dict(victims)
        self.killed: list[int] = []
        self.reasons: list[tuple[int, bool]] = []

    def recorded(self, finished: int) -> None:
        for pid in self.pool.pids.values():
            os.kill(pid, signal.SIGSTOP)

    def started(self, number: int, label: str) -> None:
        (owner,) = [t.lease_owner for t in self.store.unfinished() if t.number == number]
        pid = self.pool.pids[str(owner)]
        if self.victims.get(number, 0) > 0:
            self.victims[number] -= 1
            self.killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGCONT)

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        pass

    def reused(self, number: int, label: str, value: float, original: int) -> None:
        pass

    def failed(self, number: int, label: str, reason: str, *, retried: bool) -> None:
        self.reasons.append((number, retried))


def drive(study: Study, url: str, pool: RayPool, victims: dict[int, int]) -> tuple[Killer, list[Any]]:
    with open_store(study, url) as store:
        killer = Killer(store, pool, victims)
        Controller(study, store, pool, killer).run()
        assert store.unfinished() == []
        return killer, store.trials()


def test_local_and_ray_workers_give_equal_scores_to_the_bit(study: Study, pool: RayPool) -> None:
    with LocalPool(study.evaluator_spec(threads=1)) as local:
        here = evaluate(local, recipes(study))
    there = evaluate(pool, recipes(study))
    assert {o.worker for o in there.values()} == {"ray-0", "ray-1"}
    for number, outcome in here.items():
        assert outcome.result is not None
        other = there[number].result
        assert other is not None
        assert other.value == outcome.result.value
        assert other.worker == there[number].worker
        np.testing.assert_array_equal(other.collections[0].scores, outcome.result.collections[0].scores)
    assert len({o.result.value for o in here.values() if o.result}) > 1


def test_a_recipe_that_builds_no_merge_fails_with_its_reason_and_harms_nobody(study: Study, pool: RayPool) -> None:
    nothing = study.recipe_of({g.name: {"weight": {"retriever": 0.0, "domain": 0.0}} for g in study.groups if g.merged})
    good = recipes(study)[0]
    with LocalPool(study.evaluator_spec(threads=1)) as local:
        expected = evaluate(local, [nothing])[0]
    outcomes = evaluate(pool, [nothing, nothing, good, good])
    assert [outcomes[i].result is None for i in range(4)] == [True, True, False, False]
    for outcome in (outcomes[0], expected):
        assert outcome.failure == expected.failure
        assert "sum" in (outcome.failure or "")
        assert (outcome.recipe_at_fault, outcome.worker_died) == (True, False)


def test_a_trial_whose_worker_is_killed_is_evaluated_by_a_rebuilt_one_and_ends_once(
    study: Study, pool: RayPool, tmp_path: Path
) -> None:
    before = dict(pool.pids)
    killer, trials = drive(study, f"sqlite:///{tmp_path}/study.db", pool, {1: 1})
    assert killer.reasons == [(1, True)]
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    wait_for_workers(pool)
    assert len(set(pool.pids.values()) & set(before.values())) == 1
    assert not psutil.pid_exists(killer.killed[0])
    fresh = evaluate(pool, [study.recipe(t.params) for t in trials])
    assert [o.result.value for _, o in sorted(fresh.items()) if o.result] == [t.value for t in trials]


def test_a_trial_that_kills_more_workers_than_allowed_fails_with_the_evidence(
    study: Study, pool: RayPool, tmp_path: Path
) -> None:
    killer, trials = drive(study, f"sqlite:///{tmp_path}/study.db", pool, {0: 9})
    assert killer.reasons == [(0, True), (0, False)]
    assert [t.state.name for t in trials] == ["FAIL", *["COMPLETE"] * 4]
    reason = trials[0].user_attrs["failure"]
    assert "2 workers died" in reason
    assert re.findall(r"pid: (\d+)", reason) == [str(pid) for pid in killer.killed]
    assert reason.count("Worker unexpectedly exits") == 2
    wait_for_workers(pool)


def test_closing_with_work_in_flight_ends_at_once_and_leaves_no_worker(study: Study, pool: RayPool) -> None:
    """Closes the shared pool, so it comes after the tests that use it."""
    processes = [psutil.Process(pid) for pid in pool.pids.values()]
    for number, recipe in enumerate(recipes(study)[:2]):
        pool.submit(Task(number, recipe))
    pool.close()
    assert gone(processes)
    assert ray.is_initialized()  # it was not the pool's
    pool.close()


def threads_of(worker: Any) -> dict[str, int]:
    """Runs in the worker, in a call after the one that loaded the sources."""
    found = dict(re.findall(r"(\w+_get_(?:max|num)_threads)\(\) : (\d+)", torch.__config__.parallel_info()))
    return {name: int(n) for name, n in {**found, "rayon": os.environ["RAYON_NUM_THREADS"]}.items()}


def test_a_worker_has_the_threads_of_its_share(cluster: None, study: Study) -> None:
    """Of torch, OpenMP, MKL and the tokenizers, whatever OMP_NUM_THREADS says (here 1, in tests)."""
    with RayPool(replace(study.evaluator_spec(), threads=2), 1) as pool:
        found = ray.get(pool._actors["ray-0"].__ray_call__.remote(threads_of))
    assert {"omp_get_max_threads", "rayon"} <= found.keys()
    assert set(found.values()) == {2}


def test_sources_that_cannot_be_loaded_end_the_pool_with_the_reason(
    cluster: None, study: Study, tmp_path: Path
) -> None:
    broken = make_variant(study.folders["retriever"], tmp_path / "broken", seed=0, scale=float("nan"))
    spec = replace(study.evaluator_spec(), folders={**study.folders, "domain": broken})
    with pytest.raises(WorkerError, match=r"(?s)no Ray worker can load the sources.*NaN"):
        RayPool(spec, 1)


def test_more_workers_than_cpus_are_refused(cluster: None, study: Study) -> None:
    with pytest.raises(WorkerError, match=r"12 CPUs, the Ray cluster has 2.*workers\.count"):
        RayPool(replace(study.evaluator_spec(), threads=4), 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_program_that_ends_takes_its_cluster_along(tiny: TinyStudy, tmp_path: Path, number: signal.Signals) -> None:
    own = copy_study(tiny, tmp_path / "study").change("search", to={"strategy": "random", "minutes": 5})
    own.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    command = Command(["run", own.file, "--workers", "ray", "--count", "2"], tmp_path / "log")
    command.wait_until(lambda: command.trials_shown >= 2)
    descendants = psutil.Process(command.pid).children(recursive=True)
    assert descendants
    addresses = listening([psutil.Process(command.pid), *descendants])
    assert addresses
    assert all(map(is_loopback, addresses)), addresses
    code = command.signal(number)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL), command.output
    assert gone(descendants)
