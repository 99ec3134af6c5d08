"""Where the sources are kept while one model is overwritten with merges of them, and what memory there is for it.

    device   in the memory of the device that evaluates: merged at the speed of that memory
    pinned   page-locked in the host's memory: merged at the speed of the bus (CUDA only)
    mapped   in their files: pages are read when they are needed, shared by all processes of the machine, and
             dropped when memory is short

What is merged is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import psutil
import torch

from mergesearch.errors import MemoryPlanError
from mergesearch.evaluation.pipeline import CHUNK_DOCUMENTS
from mergesearch.sources.weights import Kept

Residency: TypeAlias = Literal["auto", "device", "pinned", "mapped"]

ACTIVATION_FLOATS = 24
"""Numbers per token and hidden unit that a transformer layer holds at once, about."""
LOCKED_SHARE = 0.8
"""Of the host's free memory as much may be page-locked: what is locked, nobody else can get."""
WORKSPACE_BYTES = 256 << 20
"""The most that merging may hold beside sources and model."""


def choose_residency(
    asked: Residency, device: str, tensors: Iterable[int], *, room: int, host: int
) -> tuple[Kept, str]:
    """Where the sources are kept, and why, in words.

    Args:
        asked: what the study file says; only `auto` leaves a choice, and whether another fits is not looked at.
        device: where merges are evaluated, as torch names it.
        tensors: bytes of every tensor of every source.
        room: bytes on the device that are left beside everything else a worker holds there.
        host: bytes of the host's memory that one worker may fill.

    Raises:
        MemoryPlanError: `pinned` on a device that is no CUDA GPU.
    """
    cuda = device.startswith("cuda")
    if asked == "pinned" and not cuda:
        raise MemoryPlanError(
            f"`workers.residency: pinned` is host memory that a CUDA GPU reads from, and the device is {device!r}. "
            "Take `auto`, or `mapped`"
        )
    if asked != "auto":
        return asked, "as the study file says"
    if device == "cpu":
        return "mapped", "workers of a machine share the pages of the files"
    sizes = list(tensors)
    total, locked = sum(sizes), page_locked(sizes)
    if total <= room:
        return "device", f"{_gib(total)} GiB fit into the {_gib(room)} GiB that are left on {device}"
    small = f"{_gib(total)} GiB do not fit into the {_gib(max(0, room))} GiB that are left on {device}"
    if cuda and locked <= LOCKED_SHARE * host:
        return "pinned", f"{small}, {_gib(locked)} GiB fit into {LOCKED_SHARE:.0%} of the host's"
    return "mapped", small + (f", nor {_gib(locked)} GiB into {LOCKED_SHARE:.0%} of the host's" if cuda else "")


def room_for_sources(bytes_at: Mapping[str, int], device: str, working: int) -> int:
    """Bytes of sources that fit on a worker's devices beside everything else, in the proportion they would lie there.

    Args:
        bytes_at: by device, of all sources.
        device: where they are looked for if there are none.
        working: bytes that everything else takes on each.
    """
    total = sum(bytes_at.values())
    if not total:
        return free_memory(device) - working
    return min((free_memory(there) - working) * total // n for there, n in bytes_at.items() if n)


def page_locked(tensors: Iterable[int]) -> int:
    """Bytes that torch page-locks for tensors of these sizes: it rounds each up to a power of two."""
    return sum(1 << (n - 1).bit_length() for n in tensors if n)


def batch_bytes(batch_tokens: int, hidden_size: int) -> int:
    """Activations of one batch, about."""
    return batch_tokens * hidden_size * ACTIVATION_FLOATS * 4


def working_bytes(batch_tokens: int, hidden_size: int) -> int:
    """What a worker needs on its device beside sources and model, about."""
    return WORKSPACE_BYTES + batch_bytes(batch_tokens, hidden_size) + CHUNK_DOCUMENTS * hidden_size * 4


def free_memory(device: str, *, cgroup: str | None = None, root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: of a CUDA GPU, else of the system within the limits on this process.

    Args:
        device: as torch names it.
        cgroup: this process's control group (version 2) below `root`; None asks the kernel.
        root: where control groups are mounted.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free: list[int] = [psutil.virtual_memory().available]
    if cgroup is None:
        own = Path("/proc/self/cgroup")
        lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
        cgroup = next((line[3:] for line in lines if line.startswith("0::")), "/")
    inside = Path(cgroup.strip("/"))
    for folder in (root / inside, *(root / above for above in inside.parents)):
        try:
            limit, used = (int((folder / f"memory.{n}").read_text(encoding="utf-8")) for n in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):  # no such group, or no limit (`max`)
            continue
        cache = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))  # given back when needed
        free.append(max(0, limit - used + cache))
    return min(free)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):,.1f}"
