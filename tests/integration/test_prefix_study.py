"""Whole studies with and without prefix reuse: the same values to the bit, for fewer layers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from optuna.trial import FrozenTrial

from mergesearch.controller import Controller
from mergesearch.listener import Listener, Summary
from mergesearch.memory_planning import check_memory
from mergesearch.planning import make_plan
from mergesearch.resolving import load_study
from mergesearch.results.status import read_status
from mergesearch.session import open_store, run_study
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.ray_pool import RayPool
from tests.tiny_studies import TinyStudy, make_study


def grid_study(folder: Path, *, kind: str = "bert", n_layers: int, groups: Any, values: list[float]) -> TinyStudy:
    study = make_study(folder, kind=kind, n_layers=n_layers)
    study.change("merge", "groups", to=groups).change("merge", "coefficients", to={"alpha": {"values": values}})
    return study.change("search", to={"strategy": "grid"})


class Interrupting(Listener):
    def __init__(self, after: int) -> None:
        self.left = after

    def finished(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def run(study: Study, url: str, listener: Listener | None = None) -> tuple[Summary, list[FrozenTrial]]:
    with open_store(study, url) as store:
        summary = run_study(study, store, listener)
        return summary, store.trials()


def layers(trials: list[FrozenTrial]) -> int:
    return sum(t.user_attrs.get("layer_tokens", 0) for t in trials)


def values(trials: list[FrozenTrial]) -> dict[str, float | None]:
    return {str(t.params): t.value for t in trials}


@pytest.mark.parametrize(
    ("n_layers", "segments", "grid", "target"),
    [(2, 2, [0, 0.25, 0.5, 0.75, 1], 0.65), (4, 4, [0, 0.5, 1], 0.4)],
)
def test_a_grid_runs_a_share_of_the_layers(
    tmp_path: Path, n_layers: int, segments: int, grid: list[float], target: float
) -> None:
    """The anchors (two sources alone and the average, all points of the grid) are among the trials."""
    tiny = grid_study(tmp_path, n_layers=n_layers, groups={"segments": segments}, values=grid)
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(study.evaluator_spec())
    points = len(grid) ** segments
    plain = n_layers * evaluator.pipeline.n_tokens * points
    summary, trials = run(study, tiny.storage)
    assert summary.evaluated == points
    assert layers(trials) <= target * plain
    # Anchors come first: what their prefixes cost is all that a walk from one end to the other would not have.
    planned = make_plan(study)
    assert planned.layer_share is not None
    assert planned.layer_share * plain <= layers(trials) <= (planned.layer_share + 3 / points) * plain
    assert "of all layers" in planned.summary()
    with open_store(study, tiny.storage) as store:
        assert f"through {layers(trials) / plain:.0%} of the layers" in read_status(store).summary()
    if points > 25:
        return
    off = load_study(tiny.change("workers", "prefix_cache", to="off").file)
    _, without = run(off, f"sqlite:///{tmp_path}/off.db")
    assert layers(without) == plain
    assert values(trials) == values(without)
    assert "of all layers" not in make_plan(off).summary()


@pytest.mark.parametrize(
    ("groups", "points", "most"),
    [
        # Of the four corners two share the half below with another; the centre has one of its own.
        ({"segments": 2}, 5, 8 / 10),
        # The template, and every layer alone at its other end: whatever lies below that layer is the template's. The
        # other source and the average share nothing.
        ({"per_layer": True}, 7, (4 * 3 + 1 + 2 + 3 + 4) / (4 * 7)),
    ],
)
def test_first_points_of_the_surrogate_share_the_layers_below(
    tmp_path: Path, groups: Any, points: int, most: float
) -> None:
    tiny = grid_study(tmp_path, n_layers=4, groups=groups, values=[0, 0.25, 0.5, 0.75, 1])
    tiny.change("search", to={"strategy": "embedding_surrogate", "trials": points})
    summary, trials = run(load_study(tiny.file), tiny.storage)
    assert summary.evaluated == points
    off = load_study(tiny.change("workers", "prefix_cache", to="off").file)
    _, without = run(off, f"sqlite:///{tmp_path}/off.db")
    assert values(trials) == values(without)
    assert [t.number for t in trials] == [t.number for t in without]
    assert layers(trials) <= most * layers(without)


def test_no_share_of_layers_is_promised_for_a_part_of_a_grid(tmp_path: Path) -> None:
    tiny = grid_study(tmp_path, n_layers=2, groups={"segments": 2}, values=[0, 0.25, 0.75, 1])
    assert load_study(tiny.file).layer_share == pytest.approx((4 + 16) / (2 * 16))
    assert load_study(tiny.change("search", "trials", to=8).file).layer_share is None
    assert load_study(tiny.change("search", "trials", to=17).file).layer_share is not None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("modernbert", {"dtype": "bfloat16"}),
        ("mistral", {"prompts": {"query": "find: "}}),
        ("t5", {}),
    ],
)
def test_scores_are_the_same_to_the_bit(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    groups = {"boundaries": [1, 3], "components": True, "embeddings": "first_segment"}
    tiny = make_study(tmp_path, kind=kind, n_layers=4).change("merge", "groups", to=groups)
    tiny.change("search", "strategy", to="grid").change("workers", "prefix_cache", to="20 MB")
    for name, to in changes.items():
        tiny.change("evaluation", name, to=to)
    study = load_study(tiny.file)
    reusing = TrialEvaluator(study.evaluator_spec())
    plain = TrialEvaluator(replace(study.evaluator_spec(), prefix=type(study.evaluator_spec().prefix)()))
    assert reusing.model.reuse is not None
    assert reusing.model.reuse.boundaries == (1, 3)
    assert plain.model.reuse is None
    points = list(study.space.grid())
    run = []
    for index in (0, 1, -1, 0, 1, 40, 41, -2, 1):
        found, expected = (e.evaluate(study.recipe(points[index])) for e in (reusing, plain))
        for ours, theirs in zip(found.collections, expected.collections, strict=True):
            np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert expected.layer_tokens == 4 * expected.tokens
        run.append(found.layer_tokens / found.tokens)
    assert set(run) <= {1.0, 3.0, 4.0}
    assert run[:2] == [4, 1]
    assert sum(run) < 4 * len(run)


def test_an_interrupted_study_ends_with_the_same_values(tmp_path: Path) -> None:
    tiny = grid_study(tmp_path, n_layers=2, groups={"segments": 2}, values=[0, 0.5, 1])
    study = load_study(tiny.file)
    _, whole = run(study, f"sqlite:///{tmp_path}/whole.db")
    for after in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            run(study, tiny.storage, Interrupting(after))
    _, trials = run(study, tiny.storage)
    assert values(trials) == values(whole)


def test_memory_for_states_is_planned_and_what_is_granted_is_refused_where_it_is_not_there(tmp_path: Path) -> None:
    tiny = grid_study(tmp_path, n_layers=2, groups={"segments": 2}, values=[0, 1])
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(study.evaluator_spec())
    for params in study.space.grid():
        evaluator.evaluate(study.recipe(params))
    plan = check_memory(study)
    reuse = evaluator.model.reuse
    assert reuse is not None
    held, _ = reuse.cache.n_bytes
    assert held == evaluator.pipeline.n_padded_tokens * 32 * 4
    assert held <= plan.prefixes <= 1.1 * held
    assert plan.boundaries == list(reuse.boundaries) == [1]
    rows = dict(make_plan(study).tables()[-1][2])
    assert "prefixes" in rows


@pytest.fixture
def cluster() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")
def test_two_ray_workers_take_subtrees_of_their_own(tmp_path: Path, cluster: None) -> None:
    """Each is given another value of the lower group when it has done with one, and no value begins twice but at the
    end, when one helps the other."""
    grid = [0, 0.2, 0.4, 0.6, 0.8, 1]
    tiny = grid_study(tmp_path, n_layers=2, groups={"segments": 2}, values=grid).change("search", "enqueue", to=[])
    study = load_study(tiny.file)
    with RayPool(study.evaluator_spec(), 2) as pool, open_store(study, tiny.storage) as store:
        while pool.free < 2:
            assert pool.wait() == []
        Controller(study, store, pool, Listener()).run()
        trials = store.trials()
    lower = {
        worker: {t.params["alpha.segment_1"] for t in trials if t.user_attrs["worker"] == worker}
        for worker in ("ray-0", "ray-1")
    }
    assert all(lower.values())
    assert len(lower["ray-0"] & lower["ray-1"]) <= 1
    plain = max(t.user_attrs["layer_tokens"] for t in trials) * len(trials)
    # Seven prefixes at most are run, one layer each, and the layer above for each of 36 points.
    assert layers(trials) <= (7 + 36) / (2 * 36) * plain
