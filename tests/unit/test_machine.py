"""What a worker finds on its machine."""

from __future__ import annotations

import pytest
import torch

from mergesearch.planning import dtype_note
from mergesearch.workers.machine import default_threads, matmul_rates


def test_workers_share_the_cores() -> None:
    cores = default_threads(1)
    assert all(default_threads(n) * n <= max(n, cores) for n in range(1, 2 * cores + 1))
    assert default_threads(cores + 1) == 1


def test_rates_are_measured_once_and_leave_the_threads_alone() -> None:
    before = torch.get_num_threads()
    wanted = frozenset({"float32", "bfloat16"})
    rates = matmul_rates(wanted, "cpu", before + 1)
    assert rates.keys() == wanted
    assert min(rates.values()) > 0
    assert torch.get_num_threads() == before
    assert matmul_rates(wanted, "cpu", before + 1) is rates


@pytest.mark.parametrize(
    ("bfloat16", "said"),
    [(230e9, "2.3 × as fast"), (20e9, "5.0 × as slow"), (105e9, "about as fast"), (95e9, "about as fast")],
)
def test_the_plan_says_what_another_dtype_would_do(bfloat16: float, said: str) -> None:
    note = dtype_note("float32", {"float32": 100e9, "bfloat16": bfloat16})
    assert note.startswith(f"matrix products in float32, measured: 100 GFLOP/s; bfloat16 is {said} (")
