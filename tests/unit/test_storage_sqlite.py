from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from mergesearch.errors import StorageError
from mergesearch.storage import list_studies
from tests.storage_helpers import ROOT, begin, check_crashes, open_soon, open_store, result
from tests.storage_study_suite import StudySuite
from tests.storage_trial_suite import TrialSuite


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What survives a power cut is SQLite's business; tests kill processes only."""

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    sa.event.listen(sa.Engine, "connect", configure)
    yield
    sa.event.remove(sa.Engine, "connect", configure)


class TestSQLite(TrialSuite, StudySuite):
    def test_killed_at_any_commit_every_trial_still_ends_exactly_once(self, url: str) -> None:
        check_crashes(url.replace("study.db", "study-{k}.db"), "--fresh")  # the tables' creation included


def test_a_locked_database_is_named_after_the_time_that_the_url_gives(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db?timeout=0.2"
    with open_store(url) as store:
        number = begin(store, 0.1, "a")
        other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=r"locked by another program.*database is locked"):
            store.finish(number, result(1))
        other.close()
        store.finish(number, result(1))
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked by another program"):
        open_store(url)
    other.close()
    open_store(url).close()


def test_a_coordinator_in_the_same_process_is_refused_too(url: str) -> None:
    with open_store(url), pytest.raises(StorageError, match=f"process {os.getpid()} on"):
        open_store(url)
    open_store(url).close()


def test_a_refused_opening_gives_the_lock_back(url: str) -> None:
    for _ in range(2):
        with pytest.raises(StorageError, match="unknown study"):
            open_store(url, None)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_place_that_cannot_be_written(tmp_path: Path, exclusive: bool) -> None:
    (tmp_path / "file").write_text("")
    below_a_file = f"sqlite:///{tmp_path}/file/study.db"
    no_folder = f"sqlite:///{tmp_path}/none/study.db"
    for url, message in ((below_a_file, "cannot write in the folder"), (no_folder, "Run: mkdir -p")):
        with pytest.raises(StorageError, match=message if exclusive else "no study database"):
            open_store(url, exclusive=exclusive)


def test_a_folder_that_not_even_root_can_write() -> None:
    folder = Path("/sys/kernel")
    if not folder.is_dir():
        folder = Path("/dev/fd")  # elsewhere than on Linux
    with pytest.raises(StorageError, match=r"cannot write in the folder .*--storage"):
        open_store(f"sqlite:///{folder}/study.db")


def test_a_read_only_database_can_be_read_and_not_driven(tmp_path: Path, url: str) -> None:
    with open_store(url) as store:
        store.finish(begin(store, 0.1, "a"), result(1))
    read_only = f"sqlite:///file:{tmp_path}/study.db?mode=ro&uri=true"
    with open_store(read_only, exclusive=False) as reader:
        assert reader.trials()[0].value == result(1).value
        with pytest.raises(StorageError, match="read-only"):
            reader.record_test_reading(result(1).collections, subject="", split="", command="")
    with pytest.raises(StorageError, match=r"read-only\. Make file and folder writable"):
        open_store(read_only)
    assert list_studies(read_only)[0].complete == 1


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("title: this is not a database, but it is long enough to be looked at" * 30)
    for exclusive in (True, False):
        with pytest.raises(StorageError, match="not an SQLite database"):
            open_store(f"sqlite:///{tmp_path}/study.db", exclusive=exclusive)


def test_reading_makes_no_files(tmp_path: Path, url: str) -> None:
    with pytest.raises(StorageError, match="no study database"):
        open_store(url, exclusive=False)
    with pytest.raises(StorageError, match="no study database"):
        list_studies(url)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "study.db").touch()
    with pytest.raises(StorageError, match="holds no study of mergesearch yet"):
        open_store(url, exclusive=False)
    assert (tmp_path / "study.db").stat().st_size == 0


def test_names_with_braces_percents_and_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "a {b} 50%"
    folder.mkdir()
    with open_store(f"sqlite:///{folder}/study.db") as store:
        begin(store, 0.1, "a")
    assert {p.name for p in folder.iterdir()} == {"study.db", "study.db.lock"}


def test_a_creation_that_was_interrupted_is_completed(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:  # what Optuna leaves when it is killed before it stamps its version
        connection.exec_driver_sql("CREATE TABLE version_info (version_info_id INTEGER NOT NULL PRIMARY KEY, "
        "schema_version INTEGER, library_version VARCHAR(256))")  # fmt: skip
    engine.dispose()
    with open_store(url) as store:
        assert begin(store, 0.1, "a") == 0


def test_tables_of_another_optuna_are_refused_with_its_advice(url: str) -> None:
    open_store(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.9.9'")
    engine.dispose()
    with pytest.raises(StorageError, match="optuna"):
        open_store(url)


def test_a_second_coordinator_is_refused_until_the_first_is_killed(url: str) -> None:
    code = (
        "import sys\nfrom tests.storage_helpers import open_store\n"
        "store = open_store(sys.argv[1])\nprint('open', flush=True)\nsys.stdin.read()\n"  # until it is killed
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, **pipes, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StorageError, match=rf"process {holder.pid} on "):
            open_store(url)
        open_store(url, exclusive=False).close()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        store = open_soon(url)
        store.close()
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_is_not_kept_alive_by_forked_children(url: str) -> None:
    code = (
        "import os, sys\nfrom tests.storage_helpers import open_store\n"
        "store = open_store(sys.argv[1])\nchild = os.fork()\n"
        "if child == 0: sys.stdin.read(); os._exit(0)\n"  # outlives its parent, and ends with the test
        "print(child, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, url], cwd=ROOT, **pipes, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.wait()
        open_soon(url).close()
        os.kill(child, 0)  # it is there still
