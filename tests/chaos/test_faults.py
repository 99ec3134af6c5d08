"""Studies to which something happens all the time, and that end as if nothing had.

An episode plays faults, drawn from a seed, on one study after the other until it has played as many as it should.
The short ones are part of `make test`, the long ones of `make chaos`, which says at its end what was played.
"""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.chaos import faults
from tests.chaos.checks import STARTUP_TRIALS, Likeness, late_results, undisturbed, violations
from tests.chaos.faults import Fault
from tests.chaos.world import World
from tests.tiny_studies import TinyStudy, copy_study, make_study

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
pytestmark = pytest.mark.chaos

RETRIES = 1000
"""So that no trial is given up for having been interrupted so often."""
TPE = {"name": "tpe", "n_startup_trials": STARTUP_TRIALS}
FEW, MANY = 6, 10
"""Values of each of two coefficients of a grid."""
ALONE = tuple(fault for fault in faults.CHEAP if fault is not faults.stop_coordinator)
"""Faults after which there is no second coordinator."""


@dataclass
class Played:
    """What happened in an episode, or in all."""

    faults: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    trials: int = 0
    late: int = 0

    def __str__(self) -> str:
        which = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"{self.faults.total()} faults in {self.studies} studies of {self.trials} trials, "
            f"{self.late} late results kept aside ({which})"
        )

    def add(self, other: Played) -> None:
        self.faults += other.faults
        self.studies += other.studies
        self.trials += other.trials
        self.late += other.late


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def total(request: pytest.FixtureRequest) -> Iterator[Played]:
    played = Played()
    yield played
    show(request, f"chaos, all together: {played}")


def show(request: pytest.FixtureRequest, line: str) -> None:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(f"{line}; no violation")


@dataclass
class Episode:
    """Plays faults on one study after the other."""

    server: PostgresServer
    study: TinyStudy
    folder: Path
    seed: int
    coordinators: int
    like: Likeness
    options: dict[str, Any] = field(default_factory=dict)

    def play(self, choices: Sequence[Fault], count: int) -> Played:
        """`count` faults, all of the choices in turn before any comes again, each time in another order."""
        expected = undisturbed(self.study, self.folder)
        rng = np.random.default_rng(self.seed)
        order = itertools.chain.from_iterable(rng.permutation(len(choices)) for _ in itertools.count())
        played, left = Played(), [choices[next(order)] for _ in range(count)]
        while left:
            folder = self.folder / f"study-{played.studies}"
            folder.mkdir()
            with World(
                self.server,
                self.study,
                folder,
                seed=self.seed + 1000 * played.studies,
                coordinators=self.coordinators,
                **self.options,
            ) as world:
                while left and left[0](world):
                    played.faults[left.pop(0).__name__] += 1
                world.end()
                found = violations(world, expected, self.like)
                assert found == [], f"{world.state()}\n{found}\nafter {played}"
                played.late += late_results(world)
            played.studies += 1
            played.trials += len(expected)
        return played


def grid(tiny: TinyStudy, folder: Path, values: int) -> TinyStudy:
    study = copy_study(tiny, folder / "study")
    study.change("merge", "coefficients", to={"alpha": {"values": [i / (values - 1) for i in range(values)]}})
    return study.change("search", to={"strategy": "grid", "retries": RETRIES})


def tpe(tiny: TinyStudy, folder: Path, trials: int) -> TinyStudy:
    study = copy_study(tiny, folder / "study").change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    return study.change("search", to={"strategy": TPE, "trials": trials, "retries": RETRIES})


def test_a_short_run_of_every_cheap_fault(tiny: TinyStudy, tmp_path: Path, postgres_server: PostgresServer) -> None:
    episode = Episode(postgres_server, grid(tiny, tmp_path, FEW), tmp_path, seed=1, coordinators=2, like="points")
    played = episode.play(faults.CHEAP, len(faults.CHEAP))
    assert set(played.faults) == {fault.__name__ for fault in faults.CHEAP}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("strategy", "coordinators", "like", "choices", "count"),
    [
        ("grid", 1, "equal", ALONE, 40),
        ("tpe", 1, "equal", ALONE, 40),
        ("grid", 3, "points", faults.CHEAP, 50),
        ("tpe", 2, "start", faults.CHEAP, 25),
    ],
)
def test_many_faults(
    tiny: TinyStudy,
    tmp_path: Path,
    postgres_server: PostgresServer,
    total: Played,
    request: pytest.FixtureRequest,
    strategy: str,
    coordinators: int,
    like: Likeness,
    choices: Sequence[Fault],
    count: int,
) -> None:
    study = grid(tiny, tmp_path, MANY) if strategy == "grid" else tpe(tiny, tmp_path, MANY**2)
    episode = Episode(postgres_server, study, tmp_path, seed=count + coordinators, coordinators=coordinators, like=like)
    played = episode.play(choices, count)
    total.add(played)
    show(request, f"{strategy}, coordinators at once: {coordinators}: {played}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not faults.mount_small(folder, 1 << 20):
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_disk_without_room_for_embeddings(
    tiny: TinyStudy,
    tmp_path: Path,
    small_disk: Path,
    postgres_server: PostgresServer,
    total: Played,
    request: pytest.FixtureRequest,
    count: int,
) -> None:
    study = copy_study(tiny, tmp_path / "study").change("artifacts", to=str(small_disk))
    study.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    study.change("search", to={"strategy": "embedding_surrogate", "trials": 20, "retries": RETRIES})
    episode = Episode(postgres_server, study, tmp_path, seed=count, coordinators=1, like="equal")
    played = episode.play([faults.fill_disk(small_disk)] * 2 + [faults.kill_coordinator], count)
    total.add(played)
    show(request, f"full disk: {played}")


@pytest.fixture
def wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that sets the clocks of the programs that are started from now on."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed")
    clock = tmp_path / "clock"
    faults.write_clock(clock, faults.SKEW_SECONDS)
    return clock


@pytest.mark.parametrize("count", [1, pytest.param(18, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_clocks_that_are_ten_minutes_wrong(
    tiny: TinyStudy,
    tmp_path: Path,
    wrong_clock: Path,
    postgres_server: PostgresServer,
    total: Played,
    request: pytest.FixtureRequest,
    count: int,
) -> None:
    study = grid(tiny, tmp_path, MANY if count > 1 else FEW)
    (library,) = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(wrong_clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    episode = Episode(postgres_server, study, tmp_path, seed=count, coordinators=2, like="points")
    episode.options = {"clock": wrong_clock, "environment": environment}
    played = episode.play([faults.set_clock, faults.set_clock, faults.kill_coordinator], count)
    total.add(played)
    show(request, f"wrong clocks: {played}")
