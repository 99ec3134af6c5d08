"""A database's password is nowhere but where it was given: a real PostgreSQL, whose password is an awkward one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.commands import PATIENCE_SECONDS
from tests.tiny_studies import TinyStudy, make_study, mergesearch

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
VARIABLES = ("MERGESEARCH_STORAGE", "MERGESEARCH_STORAGE_FILE", "OPTUNA_STORAGE")


@pytest.fixture
def secrets(postgres_server: PostgresServer) -> list[str]:
    return [postgres_server.password, postgres_server.encoded_password]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyStudy:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return make_study(tmp_path / "study").change("storage", to=None)


def stored(server: PostgresServer, database: str) -> str:
    """All text of all columns of a database."""
    tables = server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
    return "\n".join(str(server.execute(f'SELECT t::text FROM "{name}" t', database)) for (name,) in tables)


def of_processes(given: psutil.Process) -> dict[int, bytes]:
    """Command line and environment of every process that a process has started, as `ps` may show them."""
    found = {}
    for process in given.children(recursive=True):
        with suppress(OSError):  # it has ended
            found[process.pid] = b"".join(Path(f"/proc/{process.pid}/{n}").read_bytes() for n in ("cmdline", "environ"))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_command_and_no_process_that_it_starts_shows_the_password(
    tiny: TinyStudy,
    postgres_server: PostgresServer,
    postgres_url: str,
    secrets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Ray's workers live as long as the run does, which is long enough to look at them.
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    tiny.change("search", to={"strategy": "random", "minutes": 600})
    log = tmp_path / "log"
    environment = {**os.environ, "MERGESEARCH_STORAGE": postgres_url, "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "mergesearch", "run", tiny.file, "--workers", "ray", "--count", "1"],
            env=environment,
            stdout=out,
            stderr=out,
        )
    seen: dict[int, bytes] = {}
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\ntrial   2" not in log.read_bytes():
            seen |= of_processes(psutil.Process(run.pid))
            assert run.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        seen |= of_processes(psutil.Process(run.pid))
        assert b"ray::" in b"".join(seen.values())  # a worker's process among them
    finally:
        run.terminate()
        assert run.wait(PATIENCE_SECONDS) == 130
    for pid, text in seen.items():
        assert not any(secret.encode() in text for secret in secrets), pid

    said = log.read_text()
    file = tmp_path / "url"
    file.write_text(postgres_url + "\n")
    monkeypatch.setenv("MERGESEARCH_STORAGE_FILE", str(file))
    for arguments in (
        ["run", tiny.file, "--trials", 5],
        ["status", tiny.file],
        ["status", tiny.file, "-f", "json"],
        ["best", tiny.file],
        ["studies"],
        ["control", tiny.file, "go"],
        ["clean", tiny.file, "--dry-run"],
        ["evaluate", tiny.file],
        ["run", tiny.file, "--storage", postgres_url.replace("127.0.0.1", "127.0.0.2")],
        ["studies", postgres_url[:-1]],
        ["status", tiny.file, "--storage", postgres_url + "?nonsense=1"],
        ["run", tiny.file, "--storage", postgres_url.replace("%", "%%")],
    ):
        answer = mergesearch(*arguments)
        assert answer.code in (0, 4), answer.err
        said += answer.out + answer.err
    assert not any(secret in said for secret in secrets)
    assert "all 5 trials are done" in said
    database = postgres_url.rpartition("/")[2]
    kept = stored(postgres_server, database)
    assert "segment_1" in kept
    assert not any(secret in kept for secret in secrets)


def test_a_password_on_the_command_line_is_told_of_once(tiny: TinyStudy, postgres_url: str, secrets: list[str]) -> None:
    answer = mergesearch("run", tiny.file, "--trials", 1, "--storage", postgres_url)
    assert answer.code == 0, answer.err
    assert answer.err.count("MERGESEARCH_STORAGE_FILE") == 1
    assert "`ps`" in answer.err
    assert not any(secret in answer.out + answer.err for secret in secrets)


@pytest.mark.slow
def test_with_ray_a_password_on_the_command_line_is_refused(tiny: TinyStudy, postgres_url: str) -> None:
    """Ray keeps the command line of whoever uses it, for all to see."""
    done = subprocess.run(
        [sys.executable, "-m", "mergesearch", "run", tiny.file, "--count", "1", "--storage", postgres_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 5
    assert "table of jobs" in done.stderr
    assert "MERGESEARCH_STORAGE_FILE" in done.stderr


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), ("", "found empty"), (" \n", "found empty"), ("sqlite:///a.db two\n", "found 2 words")],
)
def test_a_file_without_one_url_is_an_error_that_names_it(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, problem: str
) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("MERGESEARCH_STORAGE_FILE", str(file))
    answer = mergesearch("run", tiny.file)
    assert answer.code == 4
    assert str(file) in answer.err
    assert problem in answer.err
    assert "sqlite" not in answer.err
