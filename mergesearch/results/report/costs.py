"""What the search cost, and what each strategy brought for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from mergesearch.results.view import StudyView, TrialView

ENQUEUED = "enqueued"
"""What trials are listed under that no strategy proposed."""
IMPORTED = "imported from another study"
"""What trials are listed under that were not evaluated in this one."""


@dataclass(frozen=True)
class Costs:
    """What all trials cost together.

    Attributes:
        trials: how many were begun.
        states: how many ended, or have not ended, in which state.
        reused: those whose score was known already.
        imported: those that another study evaluated.
        tokens: encoded, padding not counted.
        gpu_seconds: for which workers were held; a worker without a GPU counts as one.
        phases: wall seconds by phase, over all trials.
        elapsed: time in which at least one trial ran.
    """

    trials: int
    states: Counter[str]
    reused: int
    imported: int
    tokens: int
    gpu_seconds: float
    phases: dict[str, float]
    elapsed: timedelta


@dataclass(frozen=True)
class Strategy:
    """What was proposed by one strategy.

    Attributes:
        name: of the strategy; `enqueued` for sources alone, the uniform average and given points.
        trials: how many.
        states: of these.
        best: the highest scoring one; None where none has a score.
        gained: by how much it raised the highest dev score that others had reached before its trials ended; the sum
            over its trials. The first score of a study is no gain.
        tokens: encoded for it.
    """

    name: str
    trials: int
    states: Counter[str]
    best: TrialView | None
    gained: float
    tokens: int


def costs(view: StudyView) -> Costs:
    """Add up what trials recorded."""
    phases: dict[str, float] = {}
    for t in view.trials:
        for phase, seconds in t.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return Costs(
        trials=len(view.trials),
        states=Counter(t.state for t in view.trials),
        reused=sum(t.reused for t in view.trials),
        imported=sum(bool(t.imported) for t in view.trials),
        tokens=sum(t.tokens for t in view.trials),
        gpu_seconds=sum(t.gpu_seconds for t in view.trials),
        phases=phases,
        elapsed=elapsed(view.trials),
    )


def elapsed(trials: Sequence[TrialView]) -> timedelta:
    """Time in which at least one of the trials ran: the union of their spans."""
    spans = sorted((t.started, t.ended) for t in trials if t.started is not None and t.ended is not None)
    total, until = timedelta(), None
    for start, end in spans:
        if until is None or start > until:
            total, until = total + (end - start), end
        elif end > until:
            total, until = total + (end - until), end
    return total


def strategies(view: StudyView) -> tuple[Strategy, ...]:
    """Every strategy that proposed trials, in the order of their first ones."""
    of: dict[str, list[TrialView]] = {}
    for t in view.trials:
        of.setdefault(_proposed_by(t), []).append(t)
    gained: Counter[str] = Counter()
    before: float | None = None
    for t, best in view.best_so_far():
        if before is not None and best > before:
            gained[_proposed_by(t)] += best - before  # type: ignore[assignment]
        before = best
    return tuple(
        Strategy(
            name,
            len(trials),
            Counter(t.state for t in trials),
            max(
                (t for t in trials if t.value is not None and t.kept), key=lambda t: (t.value, -t.number), default=None
            ),
            float(gained[name]),
            sum(t.tokens for t in trials),
        )
        for name, trials in of.items()
    )


def _proposed_by(trial: TrialView) -> str:
    if trial.imported:
        return IMPORTED
    return ENQUEUED if trial.anchor else trial.strategy or "unknown"
