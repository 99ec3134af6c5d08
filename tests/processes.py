"""Processes of the operating system, as tests that kill and stop them look at them."""

from __future__ import annotations

import ipaddress
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.commands import PATIENCE_SECONDS, PRELOADED


def gone(processes: list[psutil.Process]) -> bool:
    """Waits until they have ended. Ray's agents notice within a minute that whoever started them was killed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, processes))


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # and another process with its number is another one
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.NoSuchProcess):
        return process.environ()
    return {}


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses that other programs can reach them at."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def stop(process: psutil.Process) -> None:
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def kill_when(there: Path, target: Callable[..., Any], *arguments: object) -> None:
    """Run `target`, which hangs in the end, in a process of its own, and kill that as soon as a file is there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments)
    process.start()
    while process.is_alive() and not there.exists():
        process.join(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
