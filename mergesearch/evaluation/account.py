"""What a trial costs: its clock, its batches, and what was out of the ordinary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mergesearch.evaluation.result import CollectionScores, TrialResult

if TYPE_CHECKING:
    from mergesearch.evaluation.planned import PlannedModel

Progress = Callable[[int, int], None]
"""Called with (batches encoded, batches of the trial)."""


class Account:
    """The accounts of one trial, begun when it is made.

    Args:
        model: the resident model.
        n_batches: of the whole trial.
        progress: called after every batch.

    Attributes:
        clock: seconds by phase.
    """

    def __init__(self, model: PlannedModel, n_batches: int, progress: Progress | None) -> None:
        model.notes.clear()
        model.layer_tokens = model.out_of_memory = 0
        self.clock = Clock(model.device)
        self._model = model
        self._n_batches, self._done, self._progress = n_batches, 0, progress

    def on_batch(self) -> None:
        """To be called after every batch."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._n_batches)

    def result(self, scores: tuple[CollectionScores, ...], tokens: int, **further: Any) -> TrialResult:
        """What the trial brings back; `tokens` is of useful ones, `further` fields are `TrialResult`'s."""
        counts = Counter(self._model.notes).items()
        return TrialResult(
            scores,
            self.clock.seconds,
            tokens,
            notes=tuple(note if times == 1 else f"{note} ({times} times)" for note, times in counts),
            layer_tokens=self._model.layer_tokens,
            out_of_memory=self._model.out_of_memory,
            **further,
        )


class Clock:
    """Wall seconds per phase.

    On a CUDA device the marks are events in its queue: nothing is waited for until the seconds are asked for, and work
    counts where it was asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phases: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time until the block ends as `encode`, `search` or `score`."""
        started = self._mark()
        yield
        self._phases.append((name, started, self._mark()))

    @property
    def seconds(self) -> dict[str, float]:
        """So far, of `encode`, `search` and `score`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total = {"encode": 0.0, "search": 0.0, "score": 0.0}
        for name, started, ended in self._phases:
            total[name] += _between(started, ended)
        return total

    def _mark(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def _between(started: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    """Seconds from one mark of a clock to another."""
    if isinstance(started, float) or isinstance(ended, float):
        assert isinstance(started, float)
        assert isinstance(ended, float)
        return ended - started
    return float(started.elapsed_time(ended)) / 1000
