"""Processes of the operating system, as tests that kill and stop them look at them."""

from __future__ import annotations

import ipaddress
import time
from contextlib import suppress

import psutil

from tests.commands import PATIENCE_SECONDS


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
