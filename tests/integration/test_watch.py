"""What `run` and `status --watch` show of a study while another process drives it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mergesearch.evaluation.result import TrialResult
from mergesearch.resolving import load_study
from mergesearch.results.status import read_status
from mergesearch.results.view import read_view
from mergesearch.results.watch import Snapshot, Watch
from mergesearch.workers.pool import Outcome, Task
from tests.commands import PATIENCE_SECONDS, Command
from tests.controller_toys import Bench, Diary, PredictingPool, ScriptedPool, dying, failing, scored
from tests.tiny_studies import TinyStudy, copy_study, make_endless, mergesearch

pytest_plugins = ["tests.postgres"]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_endless(tmp_path_factory.mktemp("study"))


class Onlooker(Diary):
    """Reads the study as another process would, at everything that happens."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench, self._watch, self._store = bench, None, None  # type: tuple[Bench, Watch | None, StudyStore | None]
        self.moments: list[tuple[str, int, Snapshot]] = []

    def started(self, number: int, label: str) -> None:
        if self._store is None:
            self._store = self._bench.store()
        self._watch = self._watch or Watch(self._store)
        self.moments.append(("started", number, self._watch.read()))

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        assert self._watch is not None
        self.moments.append(("finished", number, self._watch.read()))

    def close(self) -> Snapshot:
        assert self._watch is not None
        assert self._store is not None
        last = self._watch.read()
        self._store.close()
        return last


@pytest.mark.parametrize("workers", [1, 3])
def test_every_moment_of_a_study_seen_from_elsewhere(endless: TinyStudy, tmp_path: Path, workers: int) -> None:
    bench = Bench(load_study(endless.file), f"sqlite:///{tmp_path}/study.db").with_search(strategy="random", trials=9)

    def script(task: Task, attempt: int) -> Outcome:
        return failing(task, attempt) if task.number == 4 else scored(task, attempt)

    onlooker = Onlooker(bench)
    bench.drive(ScriptedPool(workers, script), onlooker)
    ended: set[int] = set()
    busy: set[int] = set()
    for what, number, now in onlooker.moments:
        if what == "finished":
            ended.add(number)
            busy.discard(number)
        else:
            busy.add(number)
        busy -= {4} if now.counts.get("fail") else set()
        assert now.counts.get("running", 0) == len(busy) <= workers
        assert {w.trial for w in now.workers if w.trial is not None} == busy
        assert {w.name for w in now.workers} <= {f"scripted-{i}" for i in range(workers)}
        assert (now.done, now.planned) == (len(ended), 9)  # the failed one is made up for
        assert now.tokens == 10 * len(ended)
        assert (now.seconds_left is None) == (now.tokens_per_second is None) == (not ended)
        assert not now.over
        assert [c.pid for c in now.coordinators] == [os.getpid()]
    last = onlooker.close()
    assert last.over
    assert last.counts == {"complete": 9, "fail": 1}
    with bench.store() as store:
        view, status = read_view(bench.study, store), read_status(store)
    assert last.best is not None
    assert (last.best.number, last.luck) == (status.best, status.best_optimism)
    known = {t.label: t.value for t in (*view.sources.values(), view.uniform) if t is not None}
    assert {m.label: m.value for m in last.marks} == known
    assert len(known) == 3


def test_a_worker_that_died_and_a_budget_that_grew(endless: TinyStudy, tmp_path: Path) -> None:
    """The pace is not taken from trials that were begun twice, and who goes on says how far."""
    bench = Bench(load_study(endless.file), f"sqlite:///{tmp_path}/study.db")
    small, large = bench.with_search(strategy="random", trials=2), bench.with_search(strategy="random", trials=4)

    def script(task: Task, attempt: int) -> Outcome:
        return dying(task, attempt) if attempt == 1 else scored(task, attempt)

    first = Onlooker(small)
    small.drive(ScriptedPool(1, script), first)
    assert [now.seconds_left for _, _, now in first.moments] == [None] * len(first.moments)
    assert first.close().planned == 2
    second = Onlooker(large)
    large.drive(ScriptedPool(), second)
    assert {now.planned for _, _, now in second.moments} == {4}
    assert second.close().done == 4


def test_predictions_are_announced(endless: TinyStudy, tmp_path: Path) -> None:
    class Hears(Diary):
        def screening(self) -> None:
            self.heard.append(("screening",))

        def screened(self, report: object) -> None:
            self.heard.append(("screened",))

    strategy = {"name": "embedding_surrogate", "initial": "one_hot", "candidates": 64}
    bench = Bench(load_study(endless.file), f"sqlite:///{tmp_path}/study.db").with_search(strategy=strategy, trials=8)
    diary = Hears()
    bench.drive(PredictingPool(), diary)
    said = [h[0] for h in diary.heard if h[0].startswith("screen")]
    assert said
    assert said == ["screening", "screened"] * (len(said) // 2)


class Terminal:
    """A terminal of `columns` columns, and all that was ever written to it."""

    def __init__(self, columns: int) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.name = Path(os.ttyname(slave))
        self._slave = slave  # while it is open, reading does not end
        self._written = b""
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def text(self) -> str:
        """Without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="replace")).replace("\r", "")

    @property
    def raw(self) -> bytes:
        return self._written

    def close(self) -> None:
        os.close(self._slave)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                self._written += os.read(self._master, 65536)
            except OSError:  # closed
                return


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(80)
    yield made
    made.close()


IN_TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}


def until(condition: Callable[[], bool], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


def test_status_watch_in_a_terminal_and_in_a_pipe(
    endless: TinyStudy, tmp_path: Path, postgres_url: str, terminal: Terminal
) -> None:
    """Neither has the study file. One is interrupted in the middle, the other ends with the study."""
    bench = Bench(load_study(endless.file), postgres_url).with_search(strategy="random", trials=6)
    begun, go_on = threading.Event(), threading.Event()

    def script(task: Task, attempt: int) -> Outcome:
        if task.number == 3:
            begun.set()
            assert go_on.wait(PATIENCE_SECONDS)
        return scored(task, attempt)

    def ended(command: Command) -> None:
        if command.poll() is None:
            command.signal(signal.SIGKILL)

    environment = {"MERGESEARCH_STORAGE": postgres_url}
    watching = ["status", "--study", "tiny", "--watch", "--every", "0.1"]
    driver = threading.Thread(target=lambda: bench.drive(ScriptedPool(1, script)), daemon=True)
    with ExitStack() as stack:
        stack.callback(go_on.set)
        driver.start()
        assert begun.wait(PATIENCE_SECONDS)
        in_terminal = Command(watching, terminal.name, IN_TERMINAL | environment)
        stack.callback(ended, in_terminal)
        in_pipe = Command(watching, tmp_path / "log", environment)
        stack.callback(ended, in_pipe)
        until(lambda: "driven by process" in terminal.text, lambda: terminal.text)
        assert "tiny: 3 of 6 trials, about " in terminal.text
        assert "3 done, 1 running, 0 pruned, 0 failed" in terminal.text
        assert re.search(r"retriever alone +0\.\d{4}", terminal.text)
        assert "scripted-0  trial 3 alpha.segment_1" in terminal.text
        assert b"\x1b[" in terminal.raw
        assert max(map(len, terminal.text.splitlines())) <= 80
        in_pipe.wait_until(lambda: "driven by" in in_pipe.output)
        os.kill(in_terminal.pid, signal.SIGINT)
        in_terminal.wait_until(lambda: False)
        assert in_terminal.poll() == 130
        assert "Traceback" not in terminal.text
        go_on.set()
        driver.join(PATIENCE_SECONDS)
        in_pipe.wait_until(lambda: False)
        assert in_pipe.poll() == 0, in_pipe.output
    lines = in_pipe.output.splitlines()
    assert lines[0].startswith("3 of 6 trials, about ")
    assert lines[-2].startswith("6 of 6 trials; 6 done, 0 running")
    assert lines[-2].endswith("nobody runs it")
    assert lines[-1].startswith("over, nobody runs it: 6 complete; 60 tokens encoded")
    assert all(c.isprintable() for line in lines for c in line)
    assert len(set(lines)) == len(lines)


def test_run_in_a_terminal(endless: TinyStudy, tmp_path: Path, terminal: Terminal) -> None:
    """Trials scroll above the panel; an interrupt leaves the lines."""
    study = copy_study(endless, tmp_path / "study")
    command = Command(["run", study.file], terminal.name, IN_TERMINAL)
    command.wait_until(lambda: "tokens/s" in terminal.text)
    command.wait_until(lambda: re.search(r"trial +\d+  0\.\d{4} +\d+\.\d s  ", terminal.text) is not None)
    assert re.search(r"tiny: \d+ trials, about (9 h \d+|10 h 0) min left", terminal.text)
    assert re.search(r"^ *best: trial \d+ +0\.\d{4}", terminal.text, re.MULTILINE)
    assert re.search(r"^local  (idle|trial \d+ )", terminal.text, re.MULTILINE)
    assert command.signal(signal.SIGINT) == 130
    assert "interrupted; nothing is lost" in terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.raw.rstrip().count(b"\x1b[?25h") == terminal.raw.count(b"\x1b[?25l") >= 1  # the cursor is back


def test_a_study_is_named_by_its_file_or_by_its_name(grid_study: TinyStudy) -> None:
    by_name = ["status", "--study", "tiny", "--storage", grid_study.storage]
    assert json.loads(mergesearch(*by_name, "-f", "json").out) == json.loads(
        mergesearch("status", grid_study.file, "-f", "json").out
    )
    assert mergesearch(*by_name).out == mergesearch("status", grid_study.file).out
    over = mergesearch(*by_name, "--watch")
    assert over.code == 0
    assert len(over.out.splitlines()) == 2
    unknown = mergesearch("status", "--study", "tinny", "--storage", grid_study.storage, "--watch")
    assert unknown.code == 4
    assert "tiny" in unknown.err
    for wrong in (
        [],
        [grid_study.file, "--study", "tiny"],
        [grid_study.file, "--every", 1],
        [grid_study.file, "--watch", "-f", "json"],
        [grid_study.file, "--watch", "--every", 0],
    ):
        assert mergesearch("status", *wrong).code == 2
