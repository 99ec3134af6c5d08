"""The store on a real PostgreSQL whose network loses commits, acknowledgements and connections.

Nothing is repeated by the caller: every call of the store returns what is recorded, as if nothing had happened.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

from mergesearch.errors import StorageError
from mergesearch.storage import StudyStore, Told, engine
from tests.postgres_proxy import Loss, PostgresProxy
from tests.storage_helpers import DISTRIBUTIONS, RECORD, ROOT, open_store, recipe, result

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]

ENDED = (Told.RECORDED, Told.ALREADY)


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[PostgresProxy]:
    with PostgresProxy(postgres_server.port) as proxy:
        yield proxy


def begin(store: StudyStore, alpha: float, logical_id: str, *, after: int | None = None) -> int | None:
    params = {"alpha.segment_1": alpha}
    return store.begin(
        params, DISTRIBUTIONS, recipe=recipe(alpha), attrs={}, logical_id=logical_id, worker="w", after=after
    )


def small_study(store: StudyStore, orphan: int) -> None:
    """What a coordinator does, with everything that the calls have to return."""
    adopted = wait_for(store.adopt)  # a take-over that is still under way is heard of at the next look
    assert [(u.number, u.logical_id) for u in adopted] == [(orphan, "orphan")]
    assert store.finish(orphan, result(9), epoch=adopted[0].epoch) in ENDED
    assert begin(store, 0.1, "a", after=1) == 1
    assert store.finish(1, result(1), epoch=1) in ENDED
    assert begin(store, 0.2, "b", after=2) == 2
    epoch = store.lease(2, "another")
    assert epoch is not None
    assert epoch >= 2
    assert store.fail(2, "no room", epoch=epoch) in ENDED
    assert begin(store, 0.3, "c", after=2) is None  # others were faster
    assert begin(store, 0.3, "c", after=3) == 3
    assert store.finish(3, result(3), epoch=1) in ENDED
    store.record_loss("retriever", "aa", "examples", 0.5)
    store.want("run")


def check_small_study(url: str, name: str) -> None:
    """Exactly what a study without faults holds."""
    with open_store(url, replace(RECORD, name=name), exclusive=False) as store:
        trials = store.trials()
        assert [t.number for t in trials] == [0, 1, 2, 3]
        assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
        assert [t.value for t in trials] == [result(9).value, result(1).value, None, result(3).value]
        assert [t.params["alpha.segment_1"] for t in trials] == [0.9, 0.1, 0.2, 0.3]
        assert store.unfinished() == []
        for number in (0, 1, 3):
            found = store.result(number)
            assert found is not None
            assert found.value == trials[number].value
        assert [store.late_results(t.number) for t in trials] == [[], [], [], []]
        assert store.losses("examples") == {"aa": 0.5}
        assert [c for c in store.coordinators() if c.alive] == []


def leave_an_orphan(url: str, name: str) -> int:
    with open_store(url, replace(RECORD, name=name)) as gone:
        number = begin(gone, 0.9, "orphan")
        assert number is not None
        return number


def carry_through(url: str, proxy: PostgresProxy, name: str, arm: Callable[[], None]) -> tuple[int, int]:
    """How many commits and messages a small study came to, in spite of the fault that `arm` puts into its way."""
    orphan = leave_an_orphan(url, name)
    store = open_store(proxy.through(url), replace(RECORD, name=name))
    commits, messages = proxy.commits, proxy.messages
    arm()
    with store:
        small_study(store, orphan)
        commits, messages = proxy.commits - commits, proxy.messages - messages
        proxy.forget()
    check_small_study(url, name)
    return commits, messages


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [Loss.ACKNOWLEDGEMENT, Loss.COMMIT, Loss.DELAYED],
)
def test_each_commit_of_a_small_study_is_lost_in_turn(postgres_url: str, proxy: PostgresProxy, loss: Loss) -> None:
    for count in itertools.count(1):
        name = f"{loss.value} {count}"
        commits, _ = carry_through(postgres_url, proxy, name, partial(proxy.at_commit, count, loss))
        if commits < count:
            break
    assert count > 10  # adopt, three begins, a lease, four ends, a loss, a wish


@pytest.mark.slow
def test_a_connection_is_cut_at_each_message_in_turn(postgres_url: str, proxy: PostgresProxy) -> None:
    for count in itertools.count(1, 11):
        _, messages = carry_through(postgres_url, proxy, f"message {count}", partial(proxy.at_message, count))
        if messages < count:
            return


@pytest.mark.parametrize("loss", [Loss.COMMIT, Loss.ACKNOWLEDGEMENT])
def test_what_came_too_late_is_kept_aside_once(postgres_url: str, proxy: PostgresProxy, loss: Loss) -> None:
    for count in (1, 2):
        name = f"late {count}"
        number = leave_an_orphan(postgres_url, name)
        with (
            open_store(postgres_url, replace(RECORD, name=name)) as new,
            open_store(proxy.through(postgres_url), replace(RECORD, name=name)) as late,
        ):
            (taken,) = new.adopt()
            proxy.at_commit(count, loss)
            assert late.finish(number, result(1), epoch=1) is Told.LATE
            assert new.finish(number, result(2), epoch=taken.epoch) is Told.RECORDED
            assert late.fail(number, "no room", epoch=1) is Told.LATE
            proxy.forget()
            assert new.trials()[0].value == result(2).value
            assert [v for _, v in new.late_results(number)] == [result(1).value, None]


def test_opening_is_carried_through_too(postgres_url: str, proxy: PostgresProxy) -> None:
    open_store(postgres_url, replace(RECORD, name="first")).close()  # the tables
    for count, loss in itertools.product((1, 2, 3), (Loss.COMMIT, Loss.ACKNOWLEDGEMENT)):
        name = f"{loss.value} {count}"
        proxy.at_commit(count, loss)
        with open_store(proxy.through(postgres_url), replace(RECORD, name=name)) as store:
            assert begin(store, 0.1, "a", after=0) == 0
        proxy.forget()
        with open_store(postgres_url, replace(RECORD, name=name), exclusive=False) as reader:
            assert [t.number for t in reader.trials()] == [0]


def test_what_cannot_be_opened_keeps_no_connection(postgres_url: str, postgres_server: PostgresServer) -> None:
    database = postgres_url.rpartition("/")[2]
    open_store(postgres_url).close()
    postgres_server.execute("UPDATE alembic_version SET version_num = 'v9.9.9'", database)
    with pytest.raises(StorageError, match="optuna") as refused:
        open_store(postgres_url)
    nobody = f"SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{database}')"
    assert wait_for(lambda: postgres_server.execute(nobody))
    del refused  # until here it held on to all that was begun


def test_a_server_that_crashes_in_the_middle(
    postgres_url: str, proxy: PostgresProxy, postgres_server: PostgresServer
) -> None:
    orphan = leave_an_orphan(postgres_url, "crash")
    crashes = []

    def crash() -> None:
        postgres_server.stop(signal.SIGQUIT)
        postgres_server.start()
        crashes.append(1)

    with open_store(proxy.through(postgres_url), replace(RECORD, name="crash")) as store:
        for count in (60, 200):
            proxy.at_message(count, crash)
        small_study(store, orphan)
    assert crashes
    check_small_study(postgres_url, "crash")


def test_nobody_answers_for_a_while(postgres_url: str, proxy: PostgresProxy) -> None:
    with open_store(proxy.through(postgres_url)) as store:
        assert begin(store, 0.1, "a", after=0) == 0
        told: list[Told] = []
        with proxy.refusing():
            ending = threading.Thread(target=lambda: told.append(store.finish(0, result(1), epoch=1)))
            ending.start()
            ending.join(1)
            assert ending.is_alive()  # it does not give up
            with pytest.raises(StorageError, match="cannot be reached"):  # who only reads is told at once
                open_store(proxy.through(postgres_url), exclusive=False)
        ending.join(120)
        assert told == [Told.RECORDED]


def start_and_begin(url: str, told: Any) -> None:
    """One of several processes that begin the trials of one study, each number once."""
    with open_store(url) as store:
        while (seen := len(store.trials())) < 24:
            number = begin(store, 0.1, f"trial:{seen}", after=seen)
            if number is not None:
                told.put((seen, number))


@pytest.mark.slow
def test_eight_processes_on_an_empty_database(postgres_url: str) -> None:
    """All open one study that is not there yet; each number is proposed by one of them."""
    context = multiprocessing.get_context("forkserver")
    told = context.Queue()
    starters = [context.Process(target=start_and_begin, args=(postgres_url, told)) for _ in range(8)]
    for starter in starters:
        starter.start()
    numbers = sorted(told.get(timeout=300) for _ in range(24))
    for starter in starters:
        starter.join(300)
    assert [starter.exitcode for starter in starters] == [0] * 8
    assert numbers == [(n, n) for n in range(24)]
    assert told.empty()
    with open_store(postgres_url, exclusive=False) as store:
        assert [t.number for t in store.trials()] == list(range(24))


_STOPPED = """
import sys
from tests.storage_helpers import DISTRIBUTIONS, open_store, recipe, result
store = open_store(sys.argv[1])
number = store.begin({"alpha.segment_1": 0.1}, DISTRIBUTIONS, recipe=recipe(0.1), attrs={}, logical_id="a", worker="w")
other = store.begin({"alpha.segment_1": 0.2}, DISTRIBUTIONS, recipe=recipe(0.2), attrs={}, logical_id="b", worker="w")
print("begun", flush=True)
sys.stdin.readline()
print(store.lease(number, "again"), store.finish(number, result(1), epoch=1).name, store.fail(other, "?", epoch=1).name)
"""


def test_a_coordinator_that_was_stopped_comes_too_late(
    postgres_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "2")
    late = subprocess.Popen(
        [sys.executable, "-c", _STOPPED, postgres_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert late.stdout is not None
        assert late.stdout.readline() == "begun\n"
        with open_store(postgres_url) as store:
            assert store.adopt() == []
            os.kill(late.pid, signal.SIGSTOP)
            taken = wait_for(store.adopt)
            assert [u.number for u in taken] == [0, 1]
            assert store.finish(0, result(2), epoch=taken[0].epoch) is Told.RECORDED
            os.kill(late.pid, signal.SIGCONT)
            said, _ = late.communicate("\n", timeout=120)
            assert said == "None LATE LATE\n"
            assert store.finish(1, result(3), epoch=taken[1].epoch) is Told.RECORDED
            assert [t.value for t in store.trials()] == [result(2).value, result(3).value]
            assert [v for _, v in store.late_results(0)] == [result(1).value]
            assert [why for why, _ in store.late_results(1)] == ["failure: ?"]
            assert store.trials()[0].user_attrs["late_results"]
    finally:
        late.kill()
        late.wait()


def test_who_stops_in_a_transaction_holds_nobody_up(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection lives as long as the process, and its locks would."""
    monkeypatch.setattr(engine, "SHORTEST_TRANSACTION_SECONDS", 2)
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "2")
    with open_store(postgres_url) as store, open_store(postgres_url) as stopped:
        assert begin(store, 0.1, "a", after=0) == 0
        with stopped._storage.engine.connect() as held:
            held.execute(sa.text("SELECT 1 FROM mergesearch_trials, studies FOR UPDATE"))
            assert store.finish(0, result(2), epoch=1) in ENDED
            assert begin(store, 0.2, "b", after=1) == 1
            with pytest.raises(sa.exc.DBAPIError, match="idle-in-transaction"):
                held.execute(sa.text("SELECT 1"))


def test_who_stops_between_two_messages_holds_nobody_up(
    postgres_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is not idle as the server sees it: it is in the middle of a pipeline of messages."""
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "2")
    with open_store(postgres_url) as store, open_store(postgres_url) as stopped:
        assert begin(stopped, 0.1, "a", after=0) == 0
        assert stopped._membership is not None
        stopped._membership._closed.set()  # no heartbeat from here on
        held: Any = stopped._storage.engine.raw_connection()
        with pytest.raises(psycopg.OperationalError), held.driver_connection.pipeline():  # noqa: PT012 - at its end
            held.driver_connection.execute("SELECT 1 FROM mergesearch_trials, studies FOR UPDATE")
            held.driver_connection.pgconn.send_flush_request()
            held.driver_connection.pgconn.flush()
            assert begin(store, 0.2, "b", after=1) == 1  # Optuna locks the study for it
            assert [t.number for t in wait_for(store.adopt)] == [0]
        held.invalidate()


def test_who_was_stopped_in_a_transaction_does_it_again(
    postgres_url: str, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has ended the transaction meanwhile, and says so where an answer was expected."""
    monkeypatch.setattr(engine, "SHORTEST_TRANSACTION_SECONDS", 1)
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "1")
    for count in (1, 4):
        name = f"stopped {count}"
        orphan = leave_an_orphan(postgres_url, name)
        with open_store(proxy.through(postgres_url), replace(RECORD, name=name)) as store:
            proxy.at_commit(count, lambda: time.sleep(2))
            small_study(store, orphan)
            proxy.forget()
        check_small_study(postgres_url, name)
    assert "the server ended what it was doing" in caplog.text


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
def test_a_server_that_vanished_is_noticed_within_a_lease(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "7")
    with open_store(postgres_url) as store, store._storage.engine.connect() as connection:
        driver_connection: Any = connection.connection.driver_connection
        with socket.fromfd(driver_connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as used:
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def wait_for(look: Callable[[], list[Any]]) -> list[Any]:
    deadline = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
