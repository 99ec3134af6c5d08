"""How far a study is, read from its database alone."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from mergesearch.evaluation.result import ESTIMATE_ATTR, GPU_SECONDS_ATTR, IMPORTED_ATTR
from mergesearch.results.choose import best_optimism, luck_in
from mergesearch.search.ledger import violation
from mergesearch.storage.coordinators import CoordinatorState
from mergesearch.storage.store import StudyStore


@dataclass(frozen=True)
class TrialLine:
    """One trial as `status` shows it.

    A trial without an end is `running`, or `orphaned` where whoever drove it is gone: the next run takes it over.

    `seconds` and the tokens are None when nothing was evaluated, `predicted` is None where nothing was predicted. A
    trial that was stopped has no `value` but an `estimate` of it: its running mean compares with no value. One that
    another study evaluated says in `imported` which trial of which study it was.
    """

    number: int
    state: str
    label: str
    value: float | None
    estimate: float | None
    predicted: float | None
    seconds: float | None
    tokens: int | None
    layer_tokens: int | None
    worker: str | None
    failure: str | None
    gpu_seconds: float
    imported: str | None = None


@dataclass(frozen=True)
class Status:
    """All trials of a study.

    Attributes:
        study: its name.
        trials: in number order.
        best: the number of the highest scoring one of those that guards keep.
        best_optimism: how much of that score is luck on average, as `Choice.best_optimism`; None where
            no trial has scores per query.
        wanted: what all coordinators are told to do: `run`, `pause`, `drain` or `stop`.
        coordinators: who drives the study now.
        gpu_hours_granted: by the study file, None for any number.
        on_queries: what dev scores are on, where that is not judged queries alone; see `evaluation.labels`.
    """

    study: str
    trials: tuple[TrialLine, ...]
    best: int | None
    best_optimism: float | None
    wanted: str = "run"
    coordinators: tuple[CoordinatorState, ...] = ()
    gpu_hours_granted: float | None = None
    on_queries: str = ""

    def count(self, state: str) -> int:
        """How many trials are in a state."""
        return sum(t.state == state for t in self.trials)

    @property
    def tokens_saved(self) -> int:
        """What trials that were stopped after a look did not encode; a whole trial's tokens are the most there are."""
        whole = max((t.tokens or 0 for t in self.trials), default=0)
        return sum(whole - t.tokens for t in self.trials if t.state == "pruned" and t.tokens)

    @property
    def gpu_hours(self) -> float:
        """What all trials that ended have held GPUs for; a worker without one counts as one."""
        return sum(t.gpu_seconds for t in self.trials) / 3600

    @property
    def prediction_error(self) -> float | None:
        """Mean absolute difference of predicted and measured dev scores; None where nothing was predicted."""
        errors = [abs(t.predicted - t.value) for t in self.trials if t.predicted is not None and t.value is not None]
        return sum(errors) / len(errors) if errors else None

    def summary(self) -> str:
        """One line for people."""
        states = ("complete", "running", "orphaned", "pruned", "fail")
        counts = ", ".join(f"{self.count(s)} {s}" for s in states if self.count(s))
        if imported := sum(t.imported is not None for t in self.trials):
            counts += f" ({imported} imported)"
        tokens = sum(t.tokens or 0 for t in self.trials)
        layers = [(t.tokens, t.layer_tokens) for t in self.trials if t.tokens and t.layer_tokens]
        most = max((run / n for n, run in layers), default=0)  # the first trial of a worker runs all layers
        run = sum(run for _, run in layers) / most / sum(n for n, _ in layers) if layers else 1
        through = f" through {run:.0%} of the layers" if run < 0.995 else ""
        saved = f" ({self.tokens_saved:,} saved by stopping early)" if self.tokens_saved else ""
        best = next((t for t in self.trials if t.number == self.best), None)
        ending = ""
        if best is not None and best.value is not None:
            score = luck_in(best.value, self.best_optimism, self.on_queries)
            ending = f"; highest: trial {best.number}, dev score {score}"
        off = "" if self.prediction_error is None else f"; predictions were {self.prediction_error:.4f} off on average"
        held = f"; {self.gpu_hours:.3g} GPU-hours" if self.gpu_hours else ""
        held += f" of {self.gpu_hours_granted:g}" if held and self.gpu_hours_granted is not None else ""
        return f"{counts or 'no trials yet'}; {tokens:,} tokens encoded{through}{saved}{held}{ending}{off}"

    def who(self, study_file: str) -> str:
        """Who drives the study, what they are told, and what nobody drives any more; a line each, for people.

        `study_file` goes into the commands that are proposed.
        """
        in_flight = {c: "1 trial" if c.trials == 1 else f"{c.trials} trials" for c in self.coordinators}
        lines = [f"driven by {c}, {trials} in flight" for c, trials in in_flight.items()] or ["nobody runs it"]
        return "\n".join(lines + asides(self.wanted, study_file, self.count("orphaned"), driven=bool(in_flight)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("tokens_saved", "prediction_error", "gpu_hours")
        coordinators = [{**asdict(c), "started_at": c.started_at.isoformat()} for c in self.coordinators]
        return {**asdict(self), "coordinators": coordinators, **{name: getattr(self, name) for name in names}}


def asides(wanted: str, study_file: str, orphaned: int, *, driven: bool) -> list[str]:
    """Lines for people on what its coordinators are told, and on trials that nobody drives any more."""
    lines = []
    if wanted == "pause":
        lines.append(f"paused; to go on: mergesearch control {shlex.quote(study_file)} go")
    elif wanted != "run" and driven:
        lines.append(f"told to {wanted}")
    if orphaned:
        lines.append(f"{orphaned} left behind by a run that ended; the next run takes over")
    return lines


def read_status(store: StudyStore, gpu_hours: float | None = None) -> Status:
    """Read every trial of an open study, whose budget of GPU-hours is told."""
    lines = []
    unfinished = store.unfinished()  # before who is alive: a coordinator that starts now holds none of these
    alive = {c.id: c for c in store.coordinators() if c.alive}
    orphaned = {t.number for t in unfinished if t.coordinator not in alive}
    trials = store.trials()
    for trial in trials:
        state = trial.state.name.lower()
        attrs = trial.user_attrs
        seconds = [v for k, v in attrs.items() if k.startswith("seconds_")]
        lines.append(
            TrialLine(
                number=trial.number,
                state="orphaned" if state == "running" and trial.number in orphaned else state,
                label=str(attrs.get("label", "")),
                value=trial.value if trial.state.name == "COMPLETE" else None,
                estimate=attrs.get(ESTIMATE_ATTR),
                predicted=attrs.get("predicted"),
                seconds=sum(seconds) if seconds else None,
                tokens=attrs.get("tokens"),
                layer_tokens=attrs.get("layer_tokens"),
                worker=attrs.get("worker"),
                failure=attrs.get("failure"),
                gpu_seconds=attrs.get(GPU_SECONDS_ATTR, 0.0),
                imported=attrs.get(IMPORTED_ATTR),
            )
        )
    scored = [line for t, line in zip(trials, lines, strict=True) if line.value is not None and not violation(t)]
    best = max(scored, key=lambda t: (t.value if t.value is not None else -math.inf, -t.number), default=None)
    return Status(
        study=store.record.name,
        trials=tuple(lines),
        best=best.number if best else None,
        best_optimism=best_optimism(store),
        wanted=store.wants(),
        coordinators=tuple(alive.values()),
        gpu_hours_granted=gpu_hours,
        on_queries=store.record.on_queries,
    )
