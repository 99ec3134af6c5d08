"""How fast a study goes, and so how long it will still take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

RECENT = 20
"""Trials that a pace is taken from: enough for a steady figure, few enough to follow a change."""


@dataclass(frozen=True)
class Ended:
    """A trial that ended; both times are of one clock.

    Attributes:
        start, end: when it was begun and when it ended.
        tokens: encoded for it.
        gpu_seconds: what workers were held for it, times their GPUs.
    """

    start: datetime
    end: datetime
    tokens: int
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Trials, tokens and GPU-seconds per second."""

    trials: float
    tokens: float
    gpu_seconds: float


def pace(ended: Sequence[Ended], running: int) -> Pace | None:
    """The pace of the last `RECENT` trials that ended.

    They are counted over the time from the first beginning to the last end, so what lies between trials counts as
    well. Where fewer have ended than run side by side, that time would hold the beginnings of the others and none of
    their ends: then every running trial is taken to last as long as those that ended.

    Args:
        ended: of one session, in any order.
        running: trials side by side now.

    Returns:
        None while nothing has ended, or no time has passed.
    """
    last = sorted(ended, key=lambda e: e.end)[-RECENT:]
    if not last:
        return None
    seconds = (last[-1].end - min(e.start for e in last)).total_seconds()
    if len(last) < running:
        seconds = sum((e.end - e.start).total_seconds() for e in last) / running
    if seconds <= 0:
        return None
    return Pace(len(last) / seconds, sum(e.tokens for e in last) / seconds, sum(e.gpu_seconds for e in last) / seconds)
