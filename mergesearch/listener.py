"""Who is told how a study goes on, and what it all came to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mergesearch.evaluation.result import TrialResult
from mergesearch.surrogate.report import ScreeningReport


class Listener:
    """Who wants to know how a study goes on; this one does not.

    Called in the controller's thread. What a listener raises is logged and changes nothing: hours of work do
    not end because a terminal did.
    """

    def measured(self, source: str, loss: float, seconds: float) -> None:
        """The loss of a source on the study's examples was measured, before any trial."""

    def started_from(self, what: str) -> None:
        """Merges of another study came over, in words; said once, before any trial."""

    def planned(self, sources: str) -> None:
        """Where the sources are kept, in words; said before they are loaded."""

    def waiting(self, what: str) -> None:
        """There is nothing to do until something happens elsewhere; said once for each reason."""

    def screening(self) -> None:
        """A worker is asked to predict merges; `screened` follows, or an error ends the study."""

    def screened(self, report: ScreeningReport) -> None:
        """Merges were predicted from the embeddings of evaluated ones."""

    def started(self, number: int, label: str) -> None:
        """A trial was given to a worker."""

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        """A trial has its value."""

    def pruned(self, number: int, label: str, result: TrialResult) -> None:
        """A trial was stopped after a look, by racing or because a trial of an equal recipe had been."""

    def reused(self, number: int, label: str, value: float, original: int) -> None:
        """A trial's recipe had been scored before."""

    def failed(self, number: int, label: str, reason: str, *, retried: bool) -> None:
        """A trial has no value; when `retried`, not yet."""


class Listeners(Listener):
    """Several listeners as one: each is told of everything, whatever the others raise."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners


def _to_all(event: str) -> Callable[..., None]:
    def tell(self: Listeners, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as stack:
            for listener in reversed(self._listeners):
                stack.callback(getattr(listener, event), *args, **kwargs)

    return tell


for _event in [name for name in vars(Listener) if not name.startswith("_")]:
    setattr(Listeners, _event, _to_all(_event))


@dataclass
class Summary:
    """How a call of `run_study` ended."""

    reason: str
    evaluated: int = 0
    pruned: int = 0
    reused: int = 0
    failed: int = 0
    adopted: int = 0
    overtaken: int = 0
    """Proposals that were dropped because another coordinator began a trial meanwhile."""
    extra_tokens: int = 0
    """Encoded beside trials, for embeddings that were missing."""
    seconds: float = 0.0

    def describe(self) -> str:
        """One line for people."""
        counts = [
            (self.evaluated, "evaluated"),
            (self.pruned, "stopped early"),
            (self.reused, "known before"),
            (self.failed, "failed"),
        ]
        done = ", ".join(f"{n} {what}" for n, what in counts if n) or "nothing to do"
        adopted = f", {self.adopted} of them begun by another process" if self.adopted else ""
        extra = f", {self.extra_tokens:,} tokens encoded again for predictions" if self.extra_tokens else ""
        return f"{self.reason}: {done}{adopted}{extra}, {self.seconds:.0f} s"
