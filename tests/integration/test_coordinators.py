"""Several coordinators, one study: what is proposed once is evaluated once, and who dies is replaced."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from mergesearch import controller
from mergesearch.controller import Controller
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.storage.tables import TrialRow
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Bench, Diary, ScriptedPool, scored
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from collections.abc import Callable

    from mergesearch.listener import Summary
    from mergesearch.storage.coordinators import Wanted

pytest_plugins = ["tests.postgres"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def bench(tiny: TinyStudy, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(controller, "POLL_SECONDS", 0.05)
    return Bench(load_study(tiny.file), postgres_url)


def together(*drives: Callable[[], Summary | None]) -> list[Summary]:
    """What each of several coordinators, driving at the same time, came to; those that were killed came to nothing."""
    with ThreadPoolExecutor(len(drives)) as executor:
        found = [future.result() for future in [executor.submit(drive) for drive in drives]]
    return [summary for summary in found if summary is not None]


@pytest.mark.parametrize("search", [{"strategy": "grid"}, {"strategy": "tpe", "trials": 8}], ids=["grid", "tpe"])
def test_nothing_is_evaluated_twice_and_all_agree_on_the_best(bench: Bench, search: dict[str, object]) -> None:
    bench = bench.with_search(**search)
    pools = [ScriptedPool(2, seed=i) for i in range(3)]
    summaries = together(*(lambda p=p: bench.drive(p) for p in pools))  # type: ignore[misc]
    assert len(summaries) == 3
    evaluated = [fingerprint for pool in pools for fingerprint in pool.evaluated]
    assert len(set(evaluated)) == len(evaluated) == sum(s.evaluated for s in summaries)
    table = bench.table()
    assert [number for number, *_ in table] == list(range(len(table)))
    assert {state for _, state, *_ in table} == {"COMPLETE"}
    points = [tuple(sorted(params.items())) for _, _, params, _ in table if params]
    if "trials" in search:
        assert len(evaluated) == search["trials"]
    else:
        assert len(set(points)) == len(points)
    with bench.store() as store:
        assert store.unfinished() == []
        assert store.coordinators() == []  # all have said that they end


def test_a_coordinator_waits_for_the_others_and_ends_what_they_leave(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=6)
    held, left = threading.Event(), threading.Event()

    def hold(task: Task, attempt: int) -> Outcome:
        held.set()
        assert left.wait(300)
        raise KeyboardInterrupt

    heard: list[str] = []

    class Waiting(Diary):
        def waiting(self, what: str) -> None:
            heard.append(what)
            left.set()

    def leave() -> None:
        with pytest.raises(KeyboardInterrupt):
            bench.drive(ScriptedPool(script=hold))

    def stay() -> Summary:
        assert held.wait(300)
        return bench.drive(ScriptedPool(script=scored), Waiting())

    (summary,) = together(leave, stay)
    assert heard[0].startswith("waiting for 1 trial of process ")
    assert (summary.evaluated, summary.adopted) == (6, 1)
    assert {state for _, state, *_ in bench.table()} == {"COMPLETE"}


@pytest.mark.parametrize("wanted", ["drain", "stop"])
def test_what_is_wanted_is_obeyed(bench: Bench, wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    bench = bench.with_search(strategy="random", trials=8)
    with open_store(bench.study, bench.url) as store:

        def script(task: Task, attempt: int) -> Outcome:
            bench.want(wanted)
            while store.wanted != wanted:
                time.sleep(0.01)
            return scored(task, attempt)

        summary = Controller(bench.study, store, ScriptedPool(3, script), Diary()).run()
    assert "as was asked for" in summary.reason
    assert summary.evaluated == (3 if wanted == "drain" else 1)  # the one that was on its way
    with bench.store() as store:
        assert len(store.unfinished()) == 3 - summary.evaluated
        assert len(store.trials()) == 3
    assert bench.drive(ScriptedPool()).evaluated + summary.evaluated == 8  # whoever starts later goes on


def test_a_pause_holds_until_it_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.6")
    bench = bench.with_search(strategy="random", trials=4)
    open_store(bench.study, bench.url).close()
    bench.want("pause")

    class Waiting(Diary):
        def waiting(self, what: str) -> None:
            assert "paused" in what
            with bench.store() as reader:
                assert reader.trials() == []
            bench.want("run")

    assert bench.drive(ScriptedPool(), Waiting()).evaluated == 4


def test_two_that_have_taken_over_trials_of_an_equal_recipe_do_not_wait_for_each_other(bench: Bench) -> None:
    bench = bench.with_search(strategy="random", trials=4)
    with open_store(bench.study, bench.url) as store:
        recipe = bench.study.recipe_of(bench.study.sources_alone()["retriever"])
        for name in ("a", "b"):
            store.begin({}, {}, recipe=recipe, attrs={"label": name}, logical_id=name)
    with open_store(bench.study, bench.url) as one, open_store(bench.study, bench.url) as other:
        taken = one.adopt()
        assert [t.number for t in taken] == [0, 1]
        drives = [Controller(bench.study, s, ScriptedPool(), Diary()) for s in (one, other)]
        one._holding.clear()  # its controller is to find its own
        with Session(one._storage.engine) as session, session.begin():
            for row in session.scalars(sa.select(TrialRow).where(TrialRow.number == 0)):
                row.coordinator_id = other.coordinator
        summaries = together(*(d.run for d in drives))
    assert sum(s.adopted for s in summaries) == 2
    assert {state for _, state, *_ in bench.table()} == {"COMPLETE"}
