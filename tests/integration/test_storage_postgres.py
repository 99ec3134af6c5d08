from __future__ import annotations

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mergesearch.errors import StorageError
from mergesearch.storage import Told
from tests.storage_helpers import RECORD, ROOT, begin, everything_stored, open_soon, open_store, result
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
        try:
            with pytest.raises(StorageError, match="cannot be reached"):
                store.finish(number, result(1), epoch=epoch)
        finally:
            postgres_server.start()
        assert store.finish(number, result(1), epoch=epoch) is Told.RECORDED
        with pytest.raises(StorageError, match="is driven by process"):  # the lock was taken again
            open_store(url)


def test_a_coordinator_whose_lock_was_lost_and_taken_stops(url: str, postgres_server: PostgresServer) -> None:
    store = open_store(url)
    postgres_server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
    )
    with open_soon(url), pytest.raises(StorageError, match="is driven by process"):
        begin(store, 0.1, "a")
    assert begin(store, 0.1, "a") == 0  # nobody has it any more
    store.close()


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
