"""Studies to which something happens all the time, and that end as if nothing had.

The short runs are part of `make test`, the long ones of `make chaos`, which says at its end what was played.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos import faults
from tests.chaos.checks import Likeness
from tests.chaos.episode import FEW, MANY, RETRIES, Episode, Played, grid, show, tpe
from tests.chaos.faults import Fault
from tests.tiny_studies import TinyStudy, copy_study

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
pytestmark = pytest.mark.chaos

ALONE = tuple(fault for fault in faults.CHEAP if fault is not faults.stop_coordinator)
"""Faults after which there is no second coordinator."""


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
def clock() -> Iterator[Path]:
    """A file that sets the clock of `wrong_server`."""
    folder = Path(tempfile.mkdtemp(prefix="mergesearch-clock-"))  # other accounts cannot read in pytest's
    folder.chmod(0o755)
    clock = folder / "clock"
    faults.write_clock(clock, faults.SKEW_SECONDS)
    yield clock
    shutil.rmtree(folder)


@pytest.fixture
def wrong_server(clock: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL whose clock is ten minutes ahead of everybody else's, or what `clock` says."""
    from tests.postgres import PostgresServer, server_programs

    libraries, programs = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), server_programs()
    if not libraries or programs is None:
        pytest.skip("libfaketime or PostgreSQL's server programs are not installed")
    faking = {"LD_PRELOAD": str(libraries[0]), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    server = PostgresServer(programs, {**faking, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})
    try:
        server.start()
        ((ahead,),) = server.execute(f"SELECT extract(epoch FROM now()) - {time.time()}")
        assert abs(float(str(ahead)) - faults.SKEW_SECONDS) < faults.SKEW_SECONDS / 2
        yield server
    finally:
        server.remove()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [2, 20])
def test_clocks_that_are_ten_minutes_apart(
    tiny: TinyStudy,
    tmp_path: Path,
    clock: Path,
    wrong_server: PostgresServer,
    total: Played,
    request: pytest.FixtureRequest,
    count: int,
) -> None:
    study = grid(tiny, tmp_path, MANY if count > 2 else FEW)
    episode = Episode(wrong_server, study, tmp_path, seed=count, coordinators=2, like="points")
    jump = faults.set_clock(clock)
    choices = [jump, faults.kill_coordinator, jump, faults.stop_coordinator]
    played = episode.play(choices[:count], count)
    total.add(played)
    show(request, f"clocks apart: {played}")
