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

STRATEGIES: dict[str, Any] = {"grid": "grid", "tpe": {"name": "tpe", "n_startup_trials": 4}}
SPACES: dict[str, dict[str, Any]] = {
    "grid": {"alpha": {"values": [i / 99 for i in range(100)]}},  # more points than any machine gets to
    "tpe": {"alpha": {"low": 0, "high": 1}},
}
RETRIES = 1000
"""So that no trial is given up for having been interrupted so often."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


def prepare(tiny: TinyStudy, folder: Path, strategy: str) -> TinyStudy:
    return copy_study(tiny, folder).change("merge", "coefficients", to=SPACES[strategy])


def budget(study: TinyStudy, strategy: str, **budget: int) -> None:
    study.change("search", to={"strategy": STRATEGIES[strategy], "retries": RETRIES, **budget})


def undisturbed(study: TinyStudy, folder: Path) -> list[Any]:
    url = f"sqlite:///{folder}/undisturbed.db"
    run_command(["run", study.file, "--storage", url], folder / "undisturbed.log")
    return read_table(url)


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_three_kills_leave_no_trace(tiny: TinyStudy, tmp_path: Path, strategy: str) -> None:
    study = prepare(tiny, tmp_path / "study", strategy)
    budget(study, strategy, minutes=600)  # no machine is done before the kill
    rng = np.random.default_rng(len(strategy))
    for trials in (0, 1, 3):
        command = Command(["run", study.file], tmp_path / "killed.log")
        command.wait_until(lambda c=command, n=trials: c.trials_shown >= n)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.2))
        assert command.signal(signal.SIGKILL) == -signal.SIGKILL, command.output
    begun = len(read_table(study.storage))
    budget(study, strategy, trials=begun + 3)
    run_command(["run", study.file], tmp_path / "killed.log")
    table = read_table(study.storage)
    assert table == undisturbed(study, tmp_path)
    assert len(table) >= begun + 3
    assert {state for _, state, *_ in table} == {"COMPLETE"}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_many_kills_of_the_installed_program(tiny: TinyStudy, tmp_path: Path, strategy: str, seed: int) -> None:
    """A program started by a shell is killed at any moment of its life until it has ended by itself."""
    study = prepare(tiny, tmp_path / "study", strategy)
    budget(study, strategy, trials=16)
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
    assert read_table(study.storage) == undisturbed(study, tmp_path)
