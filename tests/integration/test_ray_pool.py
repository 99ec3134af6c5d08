"""Ray actors as workers, on a real cluster of one machine: the same scores, and deaths that lose nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import time
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
from optuna.trial import FrozenTrial

from mergesearch.controller import Controller
from mergesearch.errors import WorkerError
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.study import Study
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from mergesearch.workers.ray_pool import RayPool
from tests.commands import PATIENCE_SECONDS, Command
from tests.controller_toys import Diary
from tests.processes import environment, gone, is_loopback, listening, stop
from tests.tiny_models import make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs for the workers that tests share and two for a test that needs workers of its own."""
    handler = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=128 << 20,
        log_to_driver=False,
    )
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
def shared(cluster: None) -> Iterator[list[RayPool]]:
    """The pool that tests share; empty while there is none that is fit for it."""
    pools: list[RayPool] = []
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(shared: list[RayPool], study: Study) -> Iterator[RayPool]:
    """Two idle workers. A test that leaves them otherwise, because it failed or meant to, takes no other along."""
    if not shared:
        shared.append(RayPool(study.evaluator_spec(), 2))
    (pool,) = shared
    wait_for_workers(pool)
    yield pool
    if pool.free < 2:
        shared.clear()
        pool.close()


def wait_for_workers(pool: RayPool, count: int = 2) -> None:
    while pool.free < count:
        assert pool.wait(timeout=PATIENCE_SECONDS) == []


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


class DeadlyPool(WorkerPool):
    """A pool whose worker is killed as soon as it is given one of the `victims` (trial number to times).

    All workers are stopped before the trial is given away, so that no machine is so fast that the trial, or the
    next one, is done before the kill.
    """

    def __init__(self, pool: RayPool, victims: dict[int, int]) -> None:
        self.pool, self.victims = pool, dict(victims)
        self.killed: list[psutil.Process] = []

    @property
    def idle(self) -> tuple[str, ...]:
        return self.pool.idle

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        if not self.victims.get(task.number):
            return self.pool.submit(task, worker)
        self.victims[task.number] -= 1
        workers = {name: psutil.Process(pid) for name, pid in self.pool.pids.items()}
        try:
            for process in workers.values():
                stop(process)
            name = self.pool.submit(task, worker)
            self.killed.append(workers.pop(name))
            self.killed[-1].kill()
        finally:
            for process in workers.values():
                process.resume()
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        return self.pool.wait(timeout)

    def close(self) -> None:
        """The pool goes on for others."""


def drive(
    study: Study, url: str, pool: RayPool, victims: dict[int, int]
) -> tuple[list[psutil.Process], list[tuple[int, bool]], list[FrozenTrial]]:
    """The workers that were killed; what the listener heard of failures, as (trial, retried); the trials."""
    deadly, diary = DeadlyPool(pool, victims), Diary()
    with open_store(study, url) as store:
        Controller(study, store, deadly, diary).run()
        assert store.unfinished() == []
        return deadly.killed, [(h[1], h[3]) for h in diary.heard if h[0] == "failed"], store.trials()


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


def test_prompts_travel_with_recipes(study: Study, pool: RayPool) -> None:
    """And stay behind with no worker: the last recipe has none."""
    one = recipes(study)[1]
    wanted = [replace(one, prompts={"made": {"query": text}}) for text in ("search query ", "the ", "a ")] + [one]
    with LocalPool(study.evaluator_spec(threads=1)) as local:
        here = evaluate(local, wanted)
    there = evaluate(pool, wanted)
    found = [(here[i].result, there[i].result) for i in range(4)]
    for mine, theirs in found:
        assert mine is not None
        assert theirs is not None
        np.testing.assert_array_equal(theirs.collections[0].scores, mine.collections[0].scores)
    assert len({theirs.collections[0].scores.tobytes() for _, theirs in found if theirs}) > 1


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
    killed, failures, trials = drive(study, f"sqlite:///{tmp_path}/study.db", pool, {1: 1})
    assert failures == [(1, True)]
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    wait_for_workers(pool)
    assert [pid for name, pid in before.items() if pool.pids[name] != pid] == [p.pid for p in killed]
    assert gone(killed)
    fresh = evaluate(pool, [study.recipe(t.params) for t in trials])
    assert [o.result.value for _, o in sorted(fresh.items()) if o.result] == [t.value for t in trials]


@pytest.mark.slow
def test_a_trial_that_kills_more_workers_than_allowed_fails_with_the_evidence(
    study: Study, pool: RayPool, tmp_path: Path
) -> None:
    killed, failures, trials = drive(study, f"sqlite:///{tmp_path}/study.db", pool, {0: 9})
    assert failures == [(0, True), (0, False)]
    assert [t.state.name for t in trials] == ["FAIL", *["COMPLETE"] * 4]
    reason = trials[0].user_attrs["failure"]
    assert "2 workers died" in reason
    assert re.findall(r"pid: (\d+)", reason) == [str(p.pid) for p in killed]
    assert reason.count("Worker unexpectedly exits") == 2
    wait_for_workers(pool)


def test_a_worker_that_dies_while_nobody_has_a_task_is_replaced(pool: RayPool) -> None:
    before = pool.pids
    psutil.Process(before["ray-0"]).kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while pool.pids.get("ray-0", before["ray-0"]) == before["ray-0"]:
        assert time.monotonic() < deadline
        pool.rest(0.1)
    assert pool.pids["ray-1"] == before["ray-1"]


def test_a_worker_that_is_stopped_loses_its_trial_and_is_replaced_and_what_it_says_later_is_not_heard(
    study: Study, pool: RayPool
) -> None:
    wanted, usual = recipes(study), pool.lease
    name = pool.idle[0]
    stopped = psutil.Process(pool.pids[name])
    stop(stopped)
    task = Task(0, wanted[0])
    assert pool.submit(task, name) == name
    assert pool.wait(timeout=0) == []  # nobody is given up who was not listened to
    pool.lease = 2.0  # for him alone: whoever loads models on a busy machine may be silent for longer
    try:
        (outcome,) = pool.wait()
    finally:
        pool.lease = usual
        with suppress(psutil.NoSuchProcess):
            stopped.resume()  # he may finish, now
    assert (outcome.task, outcome.worker, outcome.worker_died) == (task, name, True)
    assert f"{name} answered nothing for 2 seconds (pid: {stopped.pid})" in (outcome.failure or "")
    found = evaluate(pool, wanted)  # asserts that each comes back once
    assert all(o.result is not None for o in found.values())
    wait_for_workers(pool)
    assert stopped.pid not in pool.pids.values()
    assert gone([stopped])


@pytest.mark.slow
def test_a_worker_that_stays_stopped_is_killed_all_the_same(study: Study, pool: RayPool) -> None:
    name = pool.idle[0]
    stopped = psutil.Process(pool.pids[name])
    stop(stopped)
    usual, pool.lease = pool.lease, 2.0
    while pool.pids.get(name) == stopped.pid:  # though it has no trial
        assert pool.wait(timeout=0.1) == []
    pool.lease = usual
    assert gone([stopped])
    wait_for_workers(pool)


def test_closing_with_work_in_flight_ends_at_once_and_leaves_no_worker(study: Study, pool: RayPool) -> None:
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
        found = ray.get(pool._workers["ray-0"].actor.__ray_call__.remote(threads_of))
    assert {"omp_get_max_threads", "rayon"} <= found.keys()
    assert set(found.values()) == {2}


def test_sources_that_cannot_be_loaded_end_the_pool_with_the_reason(
    cluster: None, study: Study, tmp_path: Path
) -> None:
    broken = make_variant(study.folders["retriever"], tmp_path / "broken", seed=0, scale=float("nan"))
    spec = replace(study.evaluator_spec(), folders={**study.folders, "domain": broken})
    with pytest.raises(WorkerError, match=r"(?s)no Ray worker can load the sources.*NaN"):
        RayPool(spec, 1)


def test_a_folder_that_its_node_lacks_is_named(cluster: None, study: Study, tmp_path: Path) -> None:
    spec = replace(study.evaluator_spec(), folders={**study.folders, "domain": tmp_path / "elsewhere"})
    with pytest.raises(WorkerError, match=r"node \S+ \([\d.]+\) has no '.*/elsewhere', which source 'domain'"):
        RayPool(spec, 1)


def test_more_workers_than_cpus_are_refused(cluster: None, study: Study) -> None:
    with pytest.raises(WorkerError, match=r"12 CPUs, the Ray cluster has 4.*workers\.count"):
        RayPool(replace(study.evaluator_spec(), threads=4), 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_ends_takes_its_cluster_along(tiny: TinyStudy, tmp_path: Path, number: signal.Signals) -> None:
    own = copy_study(tiny, tmp_path / "study").change("search", to={"strategy": "random", "minutes": 600})
    own.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    command = Command(["run", own.file, "--workers", "ray", "--count", "2"], tmp_path / "log")
    command.wait_until(lambda: command.trials_shown >= 2)
    descendants = psutil.Process(command.pid).children(recursive=True)
    assert descendants
    addresses = listening([psutil.Process(command.pid), *descendants])
    assert addresses
    assert all(map(is_loopback, addresses)), addresses
    modes = {environment(p).get("RAY_AUTH_MODE") for p in descendants if "raylet" in p.name()}
    assert modes == {"token"}
    assert "authentication" not in command.output  # there is nothing to be warned of
    code = command.signal(number)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL), command.output
    assert gone(descendants)


@pytest.mark.slow
def test_an_idle_worker_stays_for_another_study_and_one_at_work_begins_anew(
    cluster: None, tiny: TinyStudy, study: Study
) -> None:
    """Where sources and template are the same; scores are those of a pool that was made for the study."""
    content = tiny.content()
    content["evaluation"].update(metric="mrr@10", max_length=16)
    (tiny.folder / "other.yaml").write_text(json.dumps({**content, "study": "other"}), encoding="utf-8")
    content["evaluation"].pop("max_length")
    (tiny.folder / "near.yaml").write_text(json.dumps({**content, "study": "near", "seed": 8}), encoding="utf-8")
    near, far = (load_study(tiny.folder / f"{name}.yaml").evaluator_spec() for name in ("near", "other"))
    first = study.evaluator_spec()
    assert near.resident == first.resident != far.resident
    wanted = recipes(study)[:2]
    with LocalPool(replace(near, threads=1)) as local:
        here = evaluate(local, wanted)
    with RayPool(first, 1) as pool:
        evaluate(pool, wanted[1:])
        before = dict(pool.pids)
        pool.adapt(near)
        there = evaluate(pool, wanted)
        assert pool.pids == before
        for number, outcome in here.items():
            other = there[number].result
            assert outcome.result is not None
            assert other is not None
            np.testing.assert_array_equal(other.collections[0].scores, outcome.result.collections[0].scores)
        pool.submit(Task(9, wanted[0]))
        pool.adapt(first)
        assert evaluate(pool, wanted[:1]).keys() == {0}
        assert pool.pids != before
