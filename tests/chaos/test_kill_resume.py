"""SIGKILL at random moments, the same command again: the study becomes what it would have been.

The moments are drawn from a seed: so many trials into what a process does, and a part of a trial further. Some
fall into start-up and some into the writing of a result.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import Command, read_table, run_command
from tests.tiny_studies import TinyStudy, copy_study, make_study

SEARCH: dict[str, dict[str, Any]] = {
    "grid": {"strategy": "grid"},
    "tpe": {"strategy": {"name": "tpe", "n_startup_trials": 4}, "trials": 12},
}
SPACES: dict[str, dict[str, Any]] = {
    "grid": {"alpha": {"values": [0, 0.25, 0.5, 1]}},
    "tpe": {"alpha": {"low": 0, "high": 1}},
}
TRIALS = {"grid": 16, "tpe": 12}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


def prepare(tiny: TinyStudy, folder: Path, strategy: str) -> TinyStudy:
    study = copy_study(tiny, folder)
    study.change("search", to=SEARCH[strategy]).change("merge", "coefficients", to=SPACES[strategy])
    return study


def undisturbed(study: TinyStudy, folder: Path) -> list[Any]:
    url = f"sqlite:///{folder}/undisturbed.db"
    run_command(["run", study.file, "--storage", url], folder / "undisturbed.log")
    return read_table(url)


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", list(SEARCH))
def test_three_kills_leave_no_trace(tiny: TinyStudy, tmp_path: Path, strategy: str) -> None:
    study = prepare(tiny, tmp_path / "study", strategy)
    rng = np.random.default_rng(len(strategy))
    ends = []
    for _ in range(3):
        command = Command(["run", study.file], tmp_path / "killed.log")
        trials, seconds = int(rng.integers(0, 4)), float(rng.uniform(0, 0.2))
        command.wait_until(lambda c=command, n=trials: c.trials_shown >= n)  # type: ignore[misc]
        time.sleep(seconds)
        ends.append(command.signal(signal.SIGKILL))
    assert ends[0] == -signal.SIGKILL
    assert set(ends) <= {-signal.SIGKILL, 0}, (tmp_path / "killed.log").read_text()  # 0: a fast machine was done
    run_command(["run", study.file], tmp_path / "killed.log")
    table = read_table(study.storage)
    assert table == undisturbed(study, tmp_path)
    assert len(table) == TRIALS[strategy]
    assert {state for _, state, *_ in table} == {"COMPLETE"}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", list(SEARCH))
def test_many_kills_of_the_installed_program(tiny: TinyStudy, tmp_path: Path, strategy: str, seed: int) -> None:
    """A program started by a shell is killed at any moment of its life until it has ended by itself."""
    study = prepare(tiny, tmp_path / "study", strategy)
    command = [Path(sys.executable).with_name("mergesearch"), "run", study.file]
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    subprocess.run([*command, "--trials", "1"], check=True, capture_output=True, timeout=600)
    life = 1.5 * (time.monotonic() - started)
    kills = 0
    while kills < 200:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0, life))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        break
    assert kills
    assert read_table(study.storage) == undisturbed(study, tmp_path)
