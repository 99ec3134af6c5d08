"""A real PostgreSQL server: `pytest_plugins = ["tests.postgres"]` in a test module gives its fixtures.

Name it there and do not import it (types under TYPE_CHECKING), so that all modules share one server.

`postgres_server` runs one server per session on a free loopback port, with passwords required, in a
temporary folder; `postgres_url` makes a fresh database in it for each test.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

NOT_INSTALLED = "PostgreSQL's server programs (initdb, postgres) are not installed"


def server_programs() -> Path | None:
    """The folder that holds `initdb` and `postgres`; None where PostgreSQL's server is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*installed, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None)


def free_port() -> int:
    """A free loopback port that stays free while the server is restarted: systems give higher ones to clients."""
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("none of 100 ports is free")


class PostgresServer:
    """A running server; `stop` and `start` may be called again and again, the data stays."""

    user = "searcher"
    password = "s3cret/pass:word@%"  # needs %-encoding, so that tests see both spellings
    encoded_password = "s3cret%2Fpass%3Aword%40%25"

    def __init__(self, programs: Path, environment: dict[str, str] | None = None) -> None:
        self._programs, self._environment = programs, environment or {}
        self._folder = Path(tempfile.mkdtemp(prefix="mergesearch-pg-"))
        self._account: dict[str, object] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres" if _has_account("postgres") else "nobody")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        try:
            self._create_data()
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def _create_data(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        who = ["-U", self.user, "-A", "scram-sha-256", "--pwfile", "password"]
        self._call("initdb", "-D", "data", "-E", "UTF8", "-N", *who)
        secret.unlink()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres", *, password: str = encoded_password) -> str:
        """The SQLAlchemy URL of one of its databases."""
        return f"postgresql://{self.user}:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement outside a transaction and returns its rows."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=database,
            autocommit=True,
            connect_timeout=60,
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._folder)]
        settings += ["-c", "shared_buffers=16MB", "-c", "max_connections=40"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", "-F", *settings],
                cwd=self._folder,
                env={"LC_ALL": "C", "PATH": os.environ["PATH"], **self._environment},
                stdout=log,
                stderr=log,
                **self._account,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server by its process id: SIGINT cuts connections, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=120)
            self._process = None

    def remove(self) -> None:
        """Stops the server and removes its folder."""
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=300,
            **self._account,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(done.stderr)


def _has_account(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@contextlib.contextmanager
def own_server() -> Iterator[PostgresServer]:
    """A server that runs as long as it is needed; whoever asks for one where none is installed is told so and ends."""
    programs = server_programs()
    if programs is None:
        raise SystemExit(NOT_INSTALLED)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session."""
    if server_programs() is None:
        pytest.skip(NOT_INSTALLED)
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    with own_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database of the test's own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    gc.collect()  # a connection that was left open is warned of here, and not in whatever test comes next
    postgres_server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
