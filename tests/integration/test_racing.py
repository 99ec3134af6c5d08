"""A study raced from its file to its status, by the program; and the same outcomes from every kind of worker."""

from __future__ import annotations

import shutil

import numpy as np
import optuna
import pytest
import ray

from mergesearch.evaluation.racing import Rival
from mergesearch.memory_planning import memory_plan
from mergesearch.resolving import load_study
from mergesearch.storage.store import StudyStore
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import Outcome, Task, WorkerPool
from mergesearch.workers.ray_pool import RayPool
from tests.tiny_studies import TinyStudy, make_beir, make_study, mergesearch

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    study = make_study(tmp_path_factory.mktemp("study"))
    shutil.rmtree(study.folder / "collection")
    make_beir(study.folder / "collection", n_queries=200, n_documents=120)
    study.change("merge", "coefficients", "alpha", to={"low": 0, "high": 1})
    study.change("evaluation", "collections", 0, "pool", to={"negatives": 1})
    return study.change("search", to={"strategy": "random", "trials": 12, "racing": {"alpha": 0.3}})


def test_a_raced_study_from_run_to_best(tiny: TinyStudy) -> None:
    ran = mergesearch("run", tiny.file)
    assert ran.code == 0, ran.err
    assert "stopped early" in ran.out
    with StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as store:
        trials = store.trials()
        assert len(trials) == 12
        pruned = [t for t in trials if t.state.name == "PRUNED"]
        complete = [t for t in trials if t.state.name == "COMPLETE"]
        assert pruned
        assert all(len(t.intermediate_values) == 4 for t in complete)
        whole = complete[0].user_attrs["tokens"]
        for trial in pruned:
            result = store.result(trial.number)
            assert result is not None
            assert trial.value == result.value == list(trial.intermediate_values.values())[-1]
            assert list(trial.intermediate_values) == list(range(1, len(result.looks) + 1))
            assert result.tokens < whole
            assert f"cannot beat trial {result.stopped_by}" in ran.out
            assert trial.user_attrs["n_queries"] == 50 * len(result.looks)
            # What it would have been: evaluated whole, it had not won.
            best = trials[result.stopped_by].value if result.stopped_by is not None else None
            assert result.estimate is not None
            assert best is not None
            assert result.estimate < best
        saved = sum(whole - t.user_attrs["tokens"] for t in pruned)
    status = mergesearch("status", tiny.file)
    assert f"{len(pruned)} pruned" in status.out
    assert f"({saved:,} saved by stopping early)" in status.out
    assert mergesearch("best", tiny.file).code == 0
    study = optuna.load_study(study_name="tiny", storage=tiny.storage)
    assert study.best_trial.state.name == "COMPLETE"
    again = mergesearch("run", tiny.file)
    assert "nothing to do" in again.out


def test_racing_is_planned_for(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    kept = len(study.collections[0].doc_ids) * study.layout.hidden_size * 4
    assert memory_plan(study).embeddings == 2 * kept  # one chunk that holds all, and what later looks search


def outcomes(pool: WorkerPool, tasks: list[Task]) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    left = list(tasks)
    while len(found) < len(tasks):
        if left and pool.free:
            pool.submit(left.pop(0))
            continue
        found |= {outcome.task.number: outcome for outcome in pool.wait()}
    return [found[task.number] for task in tasks]


@pytest.mark.slow
def test_local_and_ray_workers_stop_the_same_trials_at_the_same_look(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    spec = study.evaluator_spec(threads=1)
    names = [d.name for d in study.space.dimensions]
    recipes = [study.recipe(dict(zip(names, p, strict=True))) for p in ((0.3, 1.0), (1.0, 1.0), (0.9, 0.9), (0.1, 0.2))]
    with LocalPool(spec) as local:
        (best,) = outcomes(local, [Task(0, recipes[0])])
        assert best.result is not None
        (scores,) = best.result.collections
        assert scores.looks is not None
        noise = np.random.default_rng(0).normal(0.1, 0.01, (5, *scores.looks.shape)).astype(np.float32)
        rivals = tuple(Rival(i, best.result.value, (scores.looks + apart,)) for i, apart in enumerate(noise))
        tasks = [Task(i, recipe, rivals=rivals) for i, recipe in enumerate(recipes[1:], 1)]
        here = outcomes(local, tasks)
    started = not ray.is_initialized()
    try:
        with RayPool(spec, 1) as pool:
            there = outcomes(pool, tasks)
    finally:
        if started and ray.is_initialized():
            ray.shutdown()
    assert any(o.result is not None and o.result.stopped for o in here)
    for mine, theirs in zip(here, there, strict=True):
        assert mine.result is not None
        assert theirs.result is not None
        assert theirs.worker == "ray-0"
        assert (mine.result.stopped, mine.result.looks) == (theirs.result.stopped, theirs.result.looks)
        assert (mine.result.estimate, mine.result.tokens) == (theirs.result.estimate, theirs.result.tokens)
        np.testing.assert_array_equal(mine.result.collections[0].scores, theirs.result.collections[0].scores)
