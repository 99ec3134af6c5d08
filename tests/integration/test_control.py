"""`mergesearch control` and what `status` knows of those who drive a study."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergesearch.listener import Summary
from mergesearch.resolving import load_study
from mergesearch.session import open_store, run_study
from tests.commands import PATIENCE_SECONDS, Command
from tests.controller_toys import Diary
from tests.tiny_studies import TinyStudy, make_endless, mergesearch

pytest_plugins = ["tests.postgres"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_endless(tmp_path_factory.mktemp("study"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(study: TinyStudy, url: str) -> dict[str, Any]:
    answer = mergesearch("status", study.file, "--storage", url, "-f", "json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


class Waits(Diary):
    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[str] = []

    def waiting(self, what: str) -> None:
        self.waited_for.append(what)


class Running:
    """The study, driven by a thread of this process."""

    def __init__(self, study: TinyStudy, url: str) -> None:
        self.diary, self.summaries = Waits(), list[Summary]()
        self._study, self._url = study, url
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @property
    def finished(self) -> int:
        return sum(heard[0] == "finished" for heard in self.diary.heard)

    def _run(self) -> None:
        study = load_study(self._study.file)
        with open_store(study, self._url) as store:
            self.summaries.append(run_study(study, store, self.diary))

    def ended_because(self) -> str:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self.summaries[0].reason


def test_pause_go_drain_and_stop_reach_whoever_drives_the_study(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGESEARCH_LEASE_SECONDS", "6")  # which makes a heartbeat a second
    url = f"sqlite:///{tmp_path}/study.db"

    def control(what: str) -> str:
        answer = mergesearch("control", tiny.file, what, "--storage", url)
        assert answer.code == 0, answer.err
        return answer.out

    running = Running(tiny, url)
    until(lambda: running.finished >= 2)
    assert f"pause: told process {os.getpid()} on " in control("pause")
    until(lambda: any("paused" in waited for waited in running.diary.waited_for))
    paused = status(tiny, url)
    assert paused["wanted"] == "pause"
    assert [c["pid"] for c in paused["coordinators"]] == [os.getpid()]
    assert {t["state"] for t in paused["trials"]} == {"complete"}
    shown = mergesearch("status", tiny.file, "--storage", url).out
    assert f"driven by process {os.getpid()} on " in shown
    assert f"paused; to go on: mergesearch control {tiny.file} go" in shown

    before = running.finished
    control("go")
    until(lambda: running.finished > before)
    control("drain")
    assert running.ended_because() == "ended, as was asked for"
    drained = status(tiny, url)
    assert drained["coordinators"] == []
    assert {t["state"] for t in drained["trials"]} == {"complete"}
    assert "nobody runs it" in mergesearch("status", tiny.file, "--storage", url).out

    again = Running(tiny, url)  # whom the earlier `drain` does not mean
    until(lambda: again.finished >= 1)
    control("stop")
    assert again.ended_because() == "stopped, as was asked for"
    assert "nobody runs the study" in control("go")
    assert mergesearch("control", tiny.file, "halt").code == 2


def test_status_tells_running_trials_from_those_of_a_dead_process(
    tiny: TinyStudy, tmp_path: Path, postgres_url: str
) -> None:
    def counts() -> dict[str, int]:
        states = [t["state"] for t in status(tiny, postgres_url)["trials"]]
        return {state: states.count(state) for state in set(states) - {"complete"}}

    command = Command(["run", tiny.file, "--storage", postgres_url], tmp_path / "log")
    command.wait_until(lambda: command.trials_shown >= 1)
    while True:  # until it is stopped in the middle of a trial
        os.kill(command.pid, signal.SIGSTOP)
        if counts() == {"running": 1}:
            break
        os.kill(command.pid, signal.SIGCONT)
        time.sleep(0.01)
    assert [c["pid"] for c in status(tiny, postgres_url)["coordinators"]] == [command.pid]
    assert command.signal(signal.SIGKILL) == -signal.SIGKILL
    assert counts() == {"orphaned": 1}
    shown = mergesearch("status", tiny.file, "--storage", postgres_url).out
    assert "1 orphaned" in shown
    assert "1 left behind by a run that ended; the next run takes over" in shown
    assert "nobody runs it" in shown
    trials = len(status(tiny, postgres_url)["trials"])
    again = mergesearch("run", tiny.file, "--storage", postgres_url, "--trials", trials + 1)
    assert again.code == 0
    assert "1 of them begun by another process" in again.out
    assert counts() == {}
