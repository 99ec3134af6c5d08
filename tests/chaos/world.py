"""A study on PostgreSQL, behind a proxy, driven by coordinators that are started again whenever they die.

Everything is real: the server, the driver, the program, the evaluations. What happens, happens at a moment that is
drawn from a seed and told by messages between the program and its database, so that it falls into the same parts of
a trial on a machine five times slower.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from tests.commands import PATIENCE_SECONDS, Command
from tests.postgres_proxy import PostgresProxy
from tests.tiny_studies import TinyStudy

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

LEASE_SECONDS = 3
"""Short, so that leases end often; so long that a loaded machine rarely ends one by itself, which would be no harm."""
MOST_MESSAGES = 700
"""About as many as four trials send to the database."""
LONGEST_WAIT_SECONDS = 0.2
"""After a message; about two trials, most of which is evaluation."""
DATABASE_AWAY = ("cannot be reached", "server is starting", "is shutting down")
"""What a coordinator may say that found no database while it started; then the same command is given again."""


class Seat:
    """The place of one coordinator: a process, and its successors when it dies."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: Command | None = None
        self.ended = False

    @property
    def running(self) -> bool:
        return not self.ended and self.process is not None and self.process.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


class World:
    """One study and what drives it, from construction until it is left.

    Args:
        server: where a database of the study's own is made.
        study: the files.
        folder: for logs.
        seed: of all moments and victims.
        coordinators: how many drive the study at once.
        arguments: of `mergesearch run`, beside study file and storage.
    """

    def __init__(
        self,
        server: PostgresServer,
        study: TinyStudy,
        folder: Path,
        *,
        seed: int,
        coordinators: int = 1,
        arguments: Sequence[str | Path] = (),
    ) -> None:
        self.server, self.study, self.folder = server, study, folder
        self.rng = np.random.default_rng(seed)
        self.database = f"chaos{uuid.uuid4().hex[:12]}"
        server.execute(f"CREATE DATABASE {self.database}")
        self.proxy = PostgresProxy(server.port)
        self.played: Counter[str] = Counter()
        self.seats: list[Seat] = []
        self._coordinators = coordinators
        self._arguments = [*arguments]
        self._killed: set[int] = set()
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        """The database without the proxy."""
        return self.server.url(self.database)

    @property
    def over(self) -> bool:
        """Whether all coordinators have come to the study's end."""
        return all(seat.ended for seat in self.seats)

    @property
    def running(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.running]

    def begin(self) -> None:
        """Start the first coordinator, and the others when the tables are there, watched from then on."""
        self.add_seat()
        self.wait_until(self._has_tables, "the tables")
        self.server.execute(_WATCH, self.database)
        for _ in range(self._coordinators - 1):
            self.add_seat()

    def add_seat(self) -> Seat:
        """One more coordinator."""
        seat = Seat(self.folder / f"coordinator-{next(self._numbers)}.log")
        self.seats.append(seat)
        self._start(seat)
        return seat

    def tend(self) -> None:
        """Start again who was killed.

        Raises:
            AssertionError: a coordinator ended otherwise and not because the database was away while it started.
        """
        for seat in self.seats:
            if seat.ended or seat.process is None or (code := seat.process.poll()) is None:
                continue
            if code == 0:
                seat.ended = True
                continue
            last = seat.output.splitlines()[-1:] or [""]
            excused = any(sign in last[0] for sign in DATABASE_AWAY)
            assert seat.process.pid in self._killed or excused, f"ended with {code}:\n{seat.output[-3000:]}"
            self._start(seat)

    def wait_until(self, condition: Callable[[], bool], what: str, *, patience: float = PATIENCE_SECONDS) -> None:
        """Tend the coordinators until `condition` holds or all have come to the end."""
        deadline = time.monotonic() + patience
        while not condition() and not self.over:
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.state()}"
            self.tend()
            time.sleep(0.02)

    def soon(self, action: Callable[[], None]) -> bool:
        """Do `action` at a random moment; False when the study came to its end before."""
        done = threading.Event()
        errors: list[BaseException] = []
        wait = float(self.rng.uniform(0, LONGEST_WAIT_SECONDS)) * int(self.rng.integers(2))

        def act() -> None:
            try:
                time.sleep(wait)
                action()
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self.proxy.at_message(int(self.rng.integers(1, MOST_MESSAGES)), act)
        self.wait_until(done.is_set, "a message to the database")
        self.proxy.forget()
        if errors:
            raise errors[0]
        return done.is_set()

    def kill(self, seat: Seat) -> None:
        """SIGKILL; `tend` starts a successor."""
        assert seat.process is not None
        self._killed.add(seat.process.pid)
        os.kill(seat.process.pid, signal.SIGKILL)

    def any_running(self) -> Seat | None:
        """A coordinator that runs, by chance."""
        running = self.running
        return running[int(self.rng.integers(len(running)))] if running else None

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Rows from the study's database, past the proxy."""
        return self.server.execute(statement, self.database)

    def end(self) -> None:
        """Let the study come to its end without further faults."""
        self.proxy.forget()
        self.wait_until(lambda: self.over, "the end of the study")

    def state(self) -> str:
        """For people who want to know why something took so long."""
        sessions = self.query(
            "SELECT pid, state, wait_event_type, now() - state_change, left(query, 90) FROM pg_stat_activity "
            f"WHERE datname = '{self.database}'"
        )
        logs = [f"{seat.log.name}: {seat.output[-1500:]}" for seat in self.seats]
        return "\n".join([*map(str, sessions), *logs])

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all that was started here."""
        for seat in self.seats:
            if seat.running:
                self.kill(seat)
        self.proxy.close()
        self.server.execute(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")

    def _start(self, seat: Seat) -> None:
        arguments = ["run", self.study.file, "--storage", self.proxy.through(self.url), *self._arguments]
        seat.process = Command(arguments, seat.log, {"MERGESEARCH_LEASE_SECONDS": str(LEASE_SECONDS)})

    def _has_tables(self) -> bool:
        return self.query("SELECT to_regclass('mergesearch_alembic_version') IS NOT NULL") == [(True,)] and bool(
            self.query("SELECT 1 FROM mergesearch_alembic_version")
        )


_WATCH = """
CREATE TABLE chaos_violations (said text);
CREATE FUNCTION chaos_watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos_violations VALUES (TG_TABLE_NAME || ' deleted: ' || row_to_json(OLD));
        RETURN OLD;
    ELSIF TG_TABLE_NAME = 'trials' THEN
        IF OLD.state::text IN ('COMPLETE', 'PRUNED', 'FAIL') AND OLD IS DISTINCT FROM NEW THEN
            INSERT INTO chaos_violations VALUES ('trials: ' || row_to_json(OLD) || ' to ' || row_to_json(NEW));
        END IF;
    ELSIF TG_TABLE_NAME = 'mergesearch_trials' THEN
        IF OLD.outcome IS NOT NULL AND (OLD.outcome, OLD.value, OLD.lease_epoch)
            IS DISTINCT FROM (NEW.outcome, NEW.value, NEW.lease_epoch) THEN
            INSERT INTO chaos_violations VALUES ('ours: ' || row_to_json(OLD) || ' to ' || row_to_json(NEW));
        END IF;
    ELSE
        INSERT INTO chaos_violations VALUES (TG_TABLE_NAME || ': ' || row_to_json(OLD) || ' to ' || row_to_json(NEW));
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER watch AFTER UPDATE OR DELETE ON trials FOR EACH ROW EXECUTE FUNCTION chaos_watch();
CREATE TRIGGER watch AFTER UPDATE OR DELETE ON trial_values FOR EACH ROW EXECUTE FUNCTION chaos_watch();
CREATE TRIGGER watch AFTER UPDATE OR DELETE ON mergesearch_trials FOR EACH ROW EXECUTE FUNCTION chaos_watch();
CREATE TRIGGER watch AFTER UPDATE OR DELETE ON mergesearch_scores FOR EACH ROW EXECUTE FUNCTION chaos_watch();
"""
"""Notes every change of what has ended, however short-lived, in the transaction that makes it."""
