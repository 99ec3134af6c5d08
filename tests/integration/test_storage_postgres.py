from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import optuna
import pytest

from mergesearch.errors import StorageError
from mergesearch.storage import Told
from mergesearch.storage.patience import PATIENCE_SECONDS
from tests.storage_helpers import RECORD, ROOT, begin, everything_stored, open_store, result, try_to_begin
from tests.storage_study_suite import StudySuite
from tests.storage_trial_suite import TrialSuite

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


class TestPostgres(TrialSuite, StudySuite):
    pass


def test_coordinators_that_start_together_on_an_empty_database(url: str) -> None:
    code = (
        "import sys\nfrom dataclasses import replace\n"
        "from tests.storage_helpers import RECORD, open_store, begin\n"
        "sys.stdin.readline()\n"
        "with open_store(sys.argv[1], replace(RECORD, name=sys.argv[2])) as store: begin(store, .1, 'a')\n"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, f"study-{i}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    for starter in starters:
        _, errors = starter.communicate(timeout=500)
        assert starter.returncode == 0, errors


def test_two_studies_of_one_database_have_a_coordinator_each(url: str) -> None:
    with open_store(url) as one, open_store(url, replace(RECORD, name="other")) as other:
        assert [begin(one, 0.1, "a"), begin(other, 0.1, "a")] == [0, 0]


def test_a_study_goes_on_when_the_server_was_restarted(url: str, postgres_server: PostgresServer) -> None:
    with open_store(url) as store:
        number = begin(store, 0.1, "a")
        epoch = store.lease(number, "w")
        postgres_server.stop(signal.SIGQUIT)
        store.patience = 0.0
        try:
            with pytest.raises(StorageError, match="cannot be reached"):
                store.finish(number, result(1), epoch=epoch)
        finally:
            store.patience = PATIENCE_SECONDS
            back = threading.Timer(0.2, postgres_server.start)
            back.start()
        told = store.finish(number, result(1), epoch=epoch)  # tried again until the server is back
        back.join()
        assert told is Told.RECORDED


def test_whoever_thought_of_a_trial_before_others_began_theirs_thinks_again(url: str) -> None:
    with open_store(url) as one, open_store(url) as other:
        assert try_to_begin(one, 0.1, "trial:0", after=len(one.trials())) == 0
        assert try_to_begin(other, 0.2, "trial:0", after=0) is None
        assert try_to_begin(other, 0.2, "trial:0") is None  # the name is taken
        assert try_to_begin(one, 0.1, "trial:0", after=0) == 0  # the answer was lost
        assert try_to_begin(other, 0.2, "trial:1", after=len(other.trials())) == 1
        assert [t.params for t in one.trials()] == [{"alpha.segment_1": 0.1}, {"alpha.segment_1": 0.2}]


def test_queued_trials_of_other_programs_are_counted_too(url: str) -> None:
    with open_store(url) as store:
        other = optuna.load_study(study_name="study", storage=url.replace("postgresql:", "postgresql+psycopg:"))
        other.enqueue_trial({"alpha.segment_1": 0.5})
        other._storage.remove_session()
        other._storage._backend.engine.dispose()  # type: ignore[attr-defined]
        assert try_to_begin(store, 0.1, "trial:0", after=len(store.trials())) == 1


def test_trials_of_a_living_coordinator_stay_its_own(url: str) -> None:
    with open_store(url) as one, open_store(url) as other:
        number = begin(one, 0.1, "a")
        assert other.adopt() == []
        assert other.lease(number, "w") is None
        assert [(c.id, c.alive, c.trials) for c in other.coordinators()] == [
            (one.coordinator, True, 1),
            (other.coordinator, True, 0),
        ]


def test_a_silent_coordinator_loses_its_trials_and_comes_too_late(
    url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(url) as silent, open_store(url) as other:
        number = begin(silent, 0.1, "a")
        epoch = silent.lease(number, "w")
        statement = "UPDATE mergesearch_coordinators SET heartbeat_at = heartbeat_at - interval '61 s' WHERE id = {}"
        postgres_server.execute(statement.format(silent.coordinator), url.rpartition("/")[2])
        (trial,) = other.adopt()
        assert (trial.number, trial.epoch) == (number, (epoch or 0) + 1)
        assert silent.finish(number, result(1), epoch=epoch) is Told.LATE
        assert silent.finish(number, result(1), epoch=epoch) is Told.LATE
        assert silent.lease(number, "w") is None
        assert other.finish(number, result(2), epoch=other.lease(number, "v")) is Told.RECORDED
        assert silent.finish(number, result(1), epoch=epoch) is Told.LATE
        assert [value for _, value in other.late_results(number)] == [result(1).value]  # once
    with open_store(url, exclusive=False) as reader:
        (trial,) = reader.trials()
        assert trial.value == result(2).value
        (late,) = trial.user_attrs["late_results"]
        assert late["value"] == result(1).value


def test_a_trial_that_comes_back_can_be_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its coordinator was silent, another one took it over and ended first; now the first has it again."""
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "3600")  # no heartbeat comes in between
    with open_store(url) as store:
        number = begin(store, 0.1, "a")
        first = store.lease(number, "worker")
        with open_store(url) as other:
            engine = other._storage.engine
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE mergesearch_coordinators SET heartbeat_at = now() - interval '2 hours' "
                    f"WHERE id = {store.coordinator}"
                )
            assert [t.number for t in other.adopt()] == [number]
            store._member.beat()
        assert [t.number for t in store.adopt()] == [number]
        assert store.finish(number, result(1), epoch=first) is Told.LATE  # its worker was at it all the time
        second = store.lease(number, "worker")
        assert store.adopt() == []  # it knows that it has the trial
        assert store.finish(number, result(2), epoch=second) is Told.RECORDED


def test_trials_of_a_process_that_is_seen_to_have_ended_are_taken_over_at_once(url: str) -> None:
    code = (
        "import os, sys\nfrom tests.storage_helpers import begin, open_store\n"
        "store = open_store(sys.argv[1])\nbegin(store, 0.1, 'a')\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, url], cwd=ROOT, check=False, stderr=subprocess.DEVNULL)
    with open_store(url) as store:
        assert [t.number for t in store.adopt()] == [0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_processes_of_other_users_are_judged_by_their_silence_alone() -> None:
    """With /proc mounted with `hidepid` they cannot be seen, and would be taken for ended."""
    code = (
        "import os\nfrom mergesearch.storage.coordinators import _machine\nmine = _machine()\n"
        "os.setuid(65534)\n_machine.cache_clear()\nassert mine and _machine() and mine != _machine()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_wanted_is_heard_at_the_next_heartbeat(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "0.3")
    with open_store(url) as store, open_store(url, exclusive=False) as reader:
        for wanted in ("pause", "run", "drain", "stop"):
            reader.want(wanted)  # type: ignore[arg-type]
            while store.wanted != wanted:
                time.sleep(0.01)
        assert reader.wants() == "stop"
        with open_store(url) as later:
            assert later.wanted == "run"  # it started in spite of it
        reader.want("pause")
        with open_store(url) as later:
            assert later.wanted == "pause"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.url(password="wrong-word"), "user or password refused"),
        (lambda s: s.url("nowhere"), "createdb"),
        (lambda s: s.url().replace(str(s.port), "1"), "cannot be reached"),
    ],
)
def test_servers_that_refuse(
    make: object, message: str, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = make(postgres_server)  # type: ignore[operator]
    for exclusive in (True, False):
        with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match=message) as caught:
            open_store(url, exclusive=exclusive)
        for secret in (postgres_server.password, postgres_server.encoded_password, "wrong-word"):
            assert secret not in str(caught.value) + caplog.text


def test_a_user_who_may_only_read(url: str, postgres_server: PostgresServer) -> None:
    open_store(url).close()
    name = url.rsplit("/", 1)[1]
    postgres_server.execute("DROP ROLE IF EXISTS reader")
    postgres_server.execute("CREATE ROLE reader LOGIN PASSWORD 'looking-only'")
    postgres_server.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", name)
    theirs = url.replace(f"{postgres_server.user}:{postgres_server.encoded_password}", "reader:looking-only")
    with open_store(theirs, exclusive=False) as reader:
        assert reader.trials() == []
    with (
        pytest.raises(StorageError, match=r"may not write here.*GRANT") as caught,
        open_store(theirs) as store,
    ):
        begin(store, 0.1, "a")
    assert "looking-only" not in str(caught.value)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    postgres_server.execute("DROP ROLE reader")


def test_a_database_without_an_encoding(postgres_server: PostgresServer) -> None:
    postgres_server.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    with open_store(postgres_server.url("plain")) as store:
        store.finish(begin(store, 0.1, "a", note="ä→"), result(1))
        assert store.trials()[0].user_attrs["note"] == "ä→"
        assert store.fail(begin(store, 0.2, "b"), "NUL \x00 and ü") is Told.RECORDED
    postgres_server.execute("DROP DATABASE plain WITH (FORCE)")


def test_no_password_reaches_the_database_or_the_log(
    url: str, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    password = postgres_server.password
    # Settings and attributes are cleaned of URLs only: a password may be a plain word that names something there.
    record = replace(RECORD, study_file=f"storage: {url} {password}", other={"storage": url})
    with caplog.at_level(logging.DEBUG), open_store(url, record) as store:
        number = begin(store, 0.1, "a", note=f"see {url}")
        store.fail(number, f"{url} {password}")
        store.finish(begin(store, 0.2, "b"), replace(result(1), worker=url, notes=(password,)))
    stored = everything_stored(url)
    for secret in (password, postgres_server.encoded_password):
        assert secret not in stored
        assert secret not in caplog.text
