"""How the controller keeps a budget of trials, GPU-hours or minutes, with workers and without."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mergesearch.evaluation.result import GPU_SECONDS_ATTR
from mergesearch.resolving import load_study
from mergesearch.results.status import read_status
from mergesearch.storage.coordinators import Wanted
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, ScriptedPool, check_ended, dying, failing, scored
from tests.tiny_studies import TinyStudy, copy_study

pytest_plugins = ["tests.controller_fixtures"]


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluated_recipes_count_and_anchors_are_among_them(bench: Bench, workers: int) -> None:
    bench = bench.with_search(strategy="random", trials=6)
    pool = ScriptedPool(workers)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    assert len(pool.evaluated) == summary.evaluated == 6
    assert summary.reason == "all 6 trials are done"
    with bench.store() as store:
        anchors = {t.user_attrs.get("anchor") for t in store.trials()[:3]}
    assert anchors == {"domain's layers", "retriever alone", "uniform average"}
    again = bench.drive(ScriptedPool(script=failing))
    assert (again.evaluated, again.failed) == (0, 0)


def test_a_budget_smaller_than_what_is_enqueued_is_kept_and_the_rest_comes_first_later(bench: Bench) -> None:
    small = bench.with_search(strategy="random", trials=2)
    small.drive(ScriptedPool())
    assert len(small.table()) == 2
    larger = bench.with_search(strategy="random", trials=4)
    larger.drive(ScriptedPool())
    with larger.store() as store:
        anchors = [t.user_attrs.get("anchor") for t in store.trials()]
    assert None not in anchors[:3]
    assert anchors[3:] == [None]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_trial_begins_beyond_the_gpu_hours_and_more_of_them_go_on(
    tiny: TinyStudy, tmp_path: Path, workers: int
) -> None:
    """Failed trials have held their workers, too; so do all attempts of a trial whose workers died."""
    endless = copy_study(tiny, tmp_path / "study").change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    bench = Bench(load_study(endless.file), endless.storage)

    def script(task: Task, attempt: int) -> Outcome:
        time.sleep(0.01)
        if task.number % 3 == 1:
            return dying(task, attempt) if attempt == 1 else failing(task, attempt)
        return scored(task, attempt)

    def held() -> list[float]:
        with bench.store() as store:
            return [t.user_attrs.get(GPU_SECONDS_ATTR, 0.0) for t in store.trials()]

    spent: list[float] = []
    for _ in range(2):
        budget = sum(spent) + 0.2
        limited = bench.with_search(strategy="random", gpu_hours=budget / 3600)
        pool = ScriptedPool(workers, script)
        summary = limited.drive(pool)
        assert summary.reason == f"all {budget / 3600:g} GPU-hours are used"
        check_ended(bench, pool)
        assert len(held()) > len(spent)
        spent = held()
        assert sum(spent) >= 0.999 * budget
        if workers == 1:  # with others in flight, the last one to begin need not be the last to end
            assert sum(spent[:-1]) < budget
    assert limited.drive(ScriptedPool(workers, script)).evaluated == 0
    with bench.store() as store:
        assert f"{sum(spent) / 3600:.3g} GPU-hours of {budget / 3600:g}" in read_status(store, budget / 3600).summary()
        for trial in store.trials():
            if "duplicate_of" not in trial.user_attrs:
                assert trial.user_attrs[GPU_SECONDS_ATTR] >= 0.0099 * (2 if trial.state.name == "FAIL" else 1)


def test_no_trial_starts_after_the_minutes_but_adopted_ones_end(bench: Bench) -> None:
    def interrupted(task: Task, attempt: int) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.with_search(strategy="random", trials=5).drive(ScriptedPool(2, interrupted))
    bench = bench.with_search(strategy="random", minutes=1e-9)
    pool = ScriptedPool(2)
    summary = bench.drive(pool)
    check_ended(bench, pool)
    assert (summary.adopted, summary.evaluated) == (2, 2)
    assert "minutes" in summary.reason


class Deserted(ScriptedPool):
    """All nodes have left the cluster, and none will come. `wanted` is said when somebody waits for them."""

    def __init__(self, bench: Bench, wanted: Wanted | None = None) -> None:
        super().__init__()
        self.bench, self.wanted, self.patience = bench, wanted, 300

    @property
    def idle(self) -> tuple[str, ...]:
        return ()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        assert self.patience, "it would have waited for ever"
        self.patience -= 1
        if self.wanted is not None:
            self.bench.want(self.wanted)
        time.sleep(0.1)
        return []


@pytest.mark.parametrize("wanted", ["drain", "stop"])
def test_a_run_without_workers_ends_when_it_is_told_to(
    bench: Bench, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    summary = bench.with_search(strategy="random", trials=2).drive(Deserted(bench, wanted))
    assert "as was asked for" in summary.reason


@pytest.mark.parametrize(("search", "why"), [({"minutes": 0.001}, "0.001 minutes"), ({"trials": 2}, "all 2 trials")])
def test_a_run_without_workers_ends_with_its_budget(bench: Bench, search: dict[str, Any], why: str) -> None:
    bench.with_search(strategy="random", trials=2).drive(ScriptedPool())  # by another coordinator, say
    summary = bench.with_search(strategy="random", **search).drive(Deserted(bench))
    assert why in summary.reason
