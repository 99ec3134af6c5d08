"""What a worker finds on its machine: its share of the cores, and how fast they multiply in each dtype."""

from __future__ import annotations

import os
import statistics
import time
from functools import cache

import torch

_ROUNDS = 7


def default_threads(workers: int) -> int:
    """CPU threads for each of `workers` on this machine, so that they do not fight over cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


@cache
def matmul_rates(dtypes: frozenset[str], device: str, threads: int) -> dict[str, float]:
    """Floating point operations per second of a square matrix product, by dtype.

    Measured, for no name of a processor says it: dtypes take turns, and the median of their rounds counts. Takes about
    half a second, once per process.
    """
    side = 8192 if device.startswith("cuda") else 1024
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrices = {d: torch.ones(side, side, dtype=getattr(torch, d), device=device) for d in sorted(dtypes)}
        seconds: dict[str, list[float]] = {d: [] for d in matrices}
        for turn in range(1 + _ROUNDS):
            for dtype, matrix in matrices.items():
                started = time.perf_counter()
                (matrix @ matrix)[0, 0].item()  # waits for the device
                if turn:  # the first is a warm-up
                    seconds[dtype].append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return {dtype: 2 * side**3 / statistics.median(times) for dtype, times in seconds.items()}
