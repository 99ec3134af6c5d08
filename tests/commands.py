"""The `mergesearch` program in processes of its own, to be interrupted and killed.

The processes are forked from a server that has imported everything and done nothing, so that each is as fresh as
one that was started by a shell, seconds sooner.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergesearch.cli import main
from mergesearch.storage.store import StudyStore

PRELOADED = [
    "mergesearch.cli.run",
    "mergesearch.session",
    "mergesearch.results.choose",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
    "tests.commands",
]
Row = tuple[int, str, dict[str, float], float | None, str]
PATIENCE_SECONDS = 300
"""Nothing that is waited for takes this long; a test that waits for longer has failed."""


def _enter(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["mergesearch", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell runs in the background
    main()


class Command:
    """A running `mergesearch ARGUMENTS`; what it prints is in `log`. `environment` is added to this process's."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = log
        self._before = log.stat().st_size if log.exists() else 0
        self._process = context.Process(target=_enter, args=([str(a) for a in arguments], log, environment or {}))
        self._process.start()
        self._pid = self._process.pid

    @property
    def pid(self) -> int:
        assert self._pid is not None
        return self._pid

    @property
    def output(self) -> str:
        # Whoever is killed may leave half a character behind.
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def trials_shown(self) -> int:
        """How many trials it has printed a line for."""
        lines = self.log.read_bytes()[self._before :].splitlines() if self.log.exists() else []
        return sum(line.startswith(b"trial ") for line in lines)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`, or for the end of the process."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition() and self._process.is_alive():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def poll(self) -> int | None:
        """The exit code, negative for a process that a signal ended; None while it runs."""
        return self._process.exitcode

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait; the exit code, negative for a process that a signal ended.

        A process that has ended by itself in the meantime gives the exit code it ended with.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        self._process.join(PATIENCE_SECONDS)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {PATIENCE_SECONDS} s:\n{self.output}")
        self._process.close()
        return code


def run_command(arguments: Sequence[str | Path], log: Path) -> None:
    """Run `mergesearch ARGUMENTS` to its successful end."""
    command = Command(arguments, log)
    assert command.wait() == 0, command.output


def read_table(url: str, study: str = "tiny") -> list[Row]:
    """Number, state, parameters, value and recipe of every trial."""
    with StudyStore.open(url, study, None, exclusive=False) as store:
        trials: Sequence[Any] = store.trials()
        return [(t.number, t.state.name, t.params, t.value, str(t.user_attrs["recipe"])) for t in trials]
