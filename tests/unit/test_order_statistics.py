"""The k-th largest of a tensor that is seen in parts, against sorting it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.merging.kernel import Part, Site, Workspace
from mergesearch.merging.order_statistics import SMALL, kth_largest
from mergesearch.merging.statistics import LATEST, Statistics

PART = 5000
N = SMALL + 1234  # more than is sorted


class Reader:
    """A tensor in parts, and how often it was read."""

    def __init__(self, values: torch.Tensor, statistics: Statistics | None = None) -> None:
        self.values = values
        self.passes = 0
        self.statistics = statistics or Statistics()
        self.work = Workspace(PART, torch.device("cpu"))

    def parts(self) -> Iterator[Part]:
        self.passes += 1
        for i, piece in enumerate(self.values.split(PART)):
            self.work.release()
            yield Part([piece], None, i * PART)

    def kth_largest(self, k: int) -> float:
        shape = tuple(self.values.shape)
        site = Site("w", shape, ("a",), None, 0, self.parts, self.statistics, {"a": "content"})
        return kth_largest(site, self.work, "magnitude", lambda part: part.tensors[0].abs(), k)


def numbers(kind: str, n: int) -> torch.Tensor:
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    return {
        "normal": values,
        "coarse": values.bfloat16().float(),
        "mostly zero": values * (values > 2),
        "one value": torch.full((n,), 0.25),
        "denormal": values * 1e-40,
        "of all sizes": torch.exp(40 * values).clamp(max=3e38),
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "coarse", "mostly zero", "one value", "denormal", "of all sizes"])
@pytest.mark.parametrize("n", [7, SMALL, N])
def test_it_is_what_sorting_gives(kind: str, n: int) -> None:
    values = numbers(kind, n)
    reader = Reader(values)
    ordered = values.abs().sort(descending=True).values
    for k in sorted({1, 2, n // 50 + 1, n // 2, n - 1, n}):
        assert reader.kth_largest(k) == ordered[k - 1], k


@settings(max_examples=30, deadline=None, database=None)
@given(k=st.integers(1, N))
def test_every_rank_is_exact(k: int) -> None:
    values = numbers("normal", N)
    assert Reader(values).kth_largest(k) == values.abs().kthvalue(N - k + 1).values


def test_a_new_rank_takes_one_pass_and_a_known_one_none(tmp_path: Path) -> None:
    reader = Reader(numbers("normal", N), Statistics(tmp_path))
    passes = []
    for k in (100, 200, 100, 200):
        reader.kth_largest(k)
        passes.append(reader.passes)
    assert passes == [2, 3, 3, 3]
    later = Reader(reader.values, Statistics(tmp_path))  # another process
    later.kth_largest(300)
    assert later.passes == 1


def test_small_tensors_are_read_once() -> None:
    reader = Reader(numbers("normal", SMALL))
    for k in (1, 100, SMALL):
        reader.kth_largest(k)
    assert reader.passes == 1


def test_what_does_not_last_stays_off_the_disk_and_makes_room(tmp_path: Path) -> None:
    made: list[int] = []

    def build(i: int) -> torch.Tensor:
        made.append(i)
        return torch.tensor(float(i))

    statistics = Statistics(tmp_path)

    def recall(i: int) -> float:
        return float(statistics.recall((str(i),), lambda: build(i), lasting=False))

    for i in range(LATEST):
        assert recall(i) == i
    assert recall(0) == 0
    recall(LATEST)  # takes the place of 1, which was not asked for again
    assert len(made) == LATEST + 1
    assert (recall(0), recall(1)) == (0, 1)
    assert made[-1] == 1
    assert not list(tmp_path.iterdir())
