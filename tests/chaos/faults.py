"""What may happen to a study at any moment. Each fault is played to its end before the next one begins.

A fault takes the world, does harm at a random moment, undoes what has to be undone, and returns whether it was
played: the study may have come to its end before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.chaos.world import LEASE_SECONDS, Seat, World
from tests.postgres_proxy import Loss

Fault = Callable[[World], bool]

SKEW_SECONDS = 600


def kill_coordinator(world: World) -> bool:
    """SIGKILL of a coordinator; the same command is given again."""
    return _to_a_coordinator(world, world.kill)


def stop_coordinator(world: World) -> bool:
    """SIGSTOP of a coordinator until its lease is over and its trials have been taken over, then SIGCONT."""
    if len(world.seats) - sum(seat.ended for seat in world.seats) < 2:
        world.add_seat()  # somebody has to take its trials over
    stopped: list[int] = []

    def stop(seat: Seat) -> None:
        assert seat.process is not None
        os.kill(seat.process.pid, signal.SIGSTOP)
        stopped.append(seat.process.pid)

    try:
        if not _to_a_coordinator(world, stop):
            return False
        (pid,) = stopped
        world.wait_until(
            lambda: _is_forgotten(world, pid), "others to take over from a stopped coordinator", patience=120
        )
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return True


def crash_database(world: World) -> bool:
    """PostgreSQL dies without a word to anybody, and is started again."""

    def crash() -> None:
        world.server.stop(signal.SIGQUIT)
        time.sleep(float(world.rng.uniform(0, 1)))
        world.server.start()

    return world.soon(crash)


def lose_commit(world: World) -> bool:
    """A COMMIT does not reach the server."""
    return _lose(world, Loss.COMMIT)


def lose_acknowledgement(world: World) -> bool:
    """A COMMIT happens, and its acknowledgement is lost."""
    return _lose(world, Loss.ACKNOWLEDGEMENT)


def delay_commit(world: World) -> bool:
    """A connection is lost, and a COMMIT that was under way in it happens while the client asks again."""
    return _lose(world, Loss.DELAYED)


def cut_connections(world: World) -> bool:
    """All connections end at any message."""
    return world.soon(lambda: bool(world.proxy.cut()) and None)


def refuse_connections(world: World) -> bool:
    """Nobody is let in for a while."""

    def refuse() -> None:
        with world.proxy.refusing():
            time.sleep(float(world.rng.uniform(0, LEASE_SECONDS)))

    return world.soon(refuse)


def stall_network(world: World) -> bool:
    """Nothing passes for longer than a lease, and nobody is told."""

    def stall() -> None:
        with world.proxy.stalled():
            time.sleep(1.3 * LEASE_SECONDS)

    return world.soon(stall)


def set_clock(clock: Path) -> Fault:
    """The database's clock jumps to ten minutes before or after the coordinators', or back to it."""

    def jump(world: World) -> bool:
        skew = int(world.rng.choice([-SKEW_SECONDS, SKEW_SECONDS, 0]))
        return world.soon(lambda: write_clock(clock, skew))

    jump.__name__ = "set_clock"
    return jump


def write_clock(clock: Path, skew: int) -> None:
    """For libfaketime; in one piece, whoever reads it."""
    part = clock.with_suffix(".part")
    part.write_text(f"{skew:+d}s")
    part.replace(clock)


def fill_disk(folder: Path) -> Fault:
    """The disk of `folder` is full for the time of a few trials."""

    def fill(world: World) -> bool:
        filler = folder / "filler"
        if not world.soon(lambda: fill_up(filler)):
            return False
        try:
            commits = world.proxy.commits
            world.wait_until(lambda: world.proxy.commits >= commits + 8, "trials on a full disk")
        finally:
            filler.unlink(missing_ok=True)
        return True

    fill.__name__ = "fill_disk"
    return fill


def fill_up(filler: Path) -> None:
    """Write until nothing is left."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def mount_small(folder: Path, n_bytes: int) -> bool:
    """A file system of its own of `n_bytes`; False where that takes rights that we lack."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _to_a_coordinator(world: World, harm: Callable[[Seat], None]) -> bool:
    done: list[Seat] = []

    def act() -> None:
        if (seat := world.any_running()) is not None:
            harm(seat)
            done.append(seat)

    world.soon(act)
    return bool(done)


def _lose(world: World, loss: Loss) -> bool:
    commits, count = world.proxy.commits, int(world.rng.integers(1, 8))
    world.proxy.at_commit(count, loss)
    world.wait_until(lambda: world.proxy.commits >= commits + count, "a commit")
    world.proxy.forget()
    return world.proxy.commits >= commits + count


def _is_forgotten(world: World, pid: int) -> bool:
    """Whether a coordinator's lease is over and nothing is left with it."""
    held = world.query(
        f"SELECT 1 FROM mergesearch_coordinators c WHERE c.pid = {pid} AND c.ended_at IS NULL "
        "AND (abs(extract(epoch FROM now() - c.heartbeat_at)) <= c.lease_seconds OR EXISTS "
        "(SELECT 1 FROM mergesearch_trials t WHERE t.coordinator_id = c.id AND t.outcome IS NULL))"
    )
    return not held


CHEAP: tuple[Fault, ...] = (
    kill_coordinator,
    stop_coordinator,
    crash_database,
    lose_commit,
    lose_acknowledgement,
    delay_commit,
    cut_connections,
    refuse_connections,
    stall_network,
)
"""Those that need nothing but a database and a proxy."""
