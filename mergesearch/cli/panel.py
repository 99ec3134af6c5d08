"""How far a study is, as `run` and `status --watch` show it: a moment in, a panel or a line out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mergesearch.results.choose import luck_in
from mergesearch.results.status import asides
from mergesearch.results.watch import Mark, Snapshot, WorkerState

MOST_MARKS = 6
"""Sources shown beside the best; of more, the highest."""
MOST_WORKERS = 8
"""Workers that get a line each."""
MOST_DRIVERS = 3
BAR_CELLS = 60
STATES = {"complete": "done", "running": "running", "pruned": "pruned", "fail": "failed", "orphaned": "left behind"}
"""States of trials in words; the last one is named only where there are such trials."""


def panel(now: Snapshot, batches: tuple[int, int] | None = None, predicting: bool = False) -> RenderableType:
    """The study at one moment, for a terminal of any width: names are cut there, numbers are not.

    Args:
        now: the moment.
        batches: done and in all, of the trial that the one worker of this process evaluates.
        predicting: a worker of this process predicts merges.
    """
    return Group(*_parts(now, batches, predicting))


def line(now: Snapshot) -> str:
    """The same in one line, for logs."""
    parts = [_progress(now), _states(now)]
    if now.best is not None and now.best.value is not None:
        score = luck_in(now.best.value, now.luck, now.on_queries)
        best = f"highest: trial {now.best.number} ({now.best.label}), dev score {score}"
        others = [m for m in _marks(now) if m.value is not None and m.number != now.best.number]
        gains = [f"{_gain(now, m)} over {m.label}" for m in others]
        parts.append(", ".join([best, *gains]))
    return "; ".join([*parts, *([speed] if (speed := _speed(now)) else []), *_drivers(now)])


def _parts(now: Snapshot, batches: tuple[int, int] | None, predicting: bool) -> Iterator[RenderableType]:
    yield Text.assemble((now.study, "bold"), ": ", _progress(now))
    if now.planned:
        bar = _grid("left")  # which ends its line
        bar.add_row(ProgressBar(now.planned, min(now.done, now.planned)))
        yield Constrain(bar, BAR_CELLS)
    yield Text(_states(now))
    if now.best is not None or now.marks:
        yield _scores(now)
    if now.best is not None and now.best.value is not None:
        yield _one_line(f"trial {now.best.number}: {now.best.label}")
        yield Text(luck_in(now.best.value, now.luck, now.on_queries).partition("(")[2].rstrip(")"), style="dim")
    if speed := _speed(now):
        yield Text(speed)
    if now.workers:
        yield _workers(now, batches)
    if predicting:
        yield Text("predicting merges from those evaluated")
    for text in _drivers(now):
        yield Text(text, style="dim")


def _progress(now: Snapshot) -> str:
    """Trials of those planned, and the time left."""
    trials = f"{now.done} of {now.planned} trials" if now.planned is not None else f"{now.done} trials"
    if not now.coordinators or now.done == now.planned:
        return trials
    if now.wanted == "pause":
        return f"{trials}, paused"
    if now.seconds_left is not None:
        return f"{trials}, about {duration(now.seconds_left)} left"
    return f"{trials}, time left unknown" + (" until trials have ended" if now.planned is not None else "")


def _states(now: Snapshot) -> str:
    return ", ".join(f"{n} {name}" for s, name in STATES.items() if (n := now.counts.get(s, 0)) or s != "orphaned")


def _scores(now: Snapshot) -> Table:
    table = _grid("left", "right", "right")
    table.add_row("", Text("dev score", style="dim"), Text("best is", style="dim"))
    if now.best is not None:
        table.add_row(*(Text(cell, style="bold") for cell in (f"best: trial {now.best.number}", _score(now.best), "")))
    for mark in (shown := _marks(now)):
        table.add_row(_one_line(mark.label), _score(mark), _gain(now, mark))
    if len(shown) < len(now.marks):
        table.add_row(_one_line(f"and {len(now.marks) - len(shown)} more"), "", "")
    return table


def _marks(now: Snapshot) -> list[Mark]:
    """Those that are shown, in the order of their trials."""
    highest = sorted(now.marks, key=lambda m: (m.value is None, -(m.value or 0.0), m.number))
    return sorted(highest[:MOST_MARKS], key=lambda m: m.number)


def _score(mark: Mark) -> str:
    return "–" if mark.value is None else f"{mark.value:.4f}"


def _gain(now: Snapshot, mark: Mark) -> str:
    """By how much the best is above another."""
    if mark.value is None or now.best is None or now.best.value is None:
        return ""
    if mark.number == now.best.number:
        return "the same"
    return f"{now.best.value - mark.value:+.4f}"


def _speed(now: Snapshot) -> str:
    """Tokens, and GPU-hours where they are a budget; empty before the first token."""
    if not now.tokens:
        return ""
    rate = "" if now.tokens_per_second is None else f"{now.tokens_per_second:,.0f} tokens/s, "
    granted = now.gpu_hours_granted
    held = "" if granted is None else f", {now.gpu_hours:.3g} of {granted:g} GPU-hours"
    return f"{rate}{now.tokens:,} tokens encoded{held}"


def _workers(now: Snapshot, batches: tuple[int, int] | None) -> RenderableType:
    busy = sum(w.trial is not None for w in now.workers)
    if len(now.workers) > MOST_WORKERS:
        return Text(f"workers: {busy} with a trial, {len(now.workers) - busy} idle")
    table = _grid("left", "left", "right")
    for worker in now.workers:
        what = Text("idle", style="dim") if worker.trial is None else _one_line(f"trial {worker.trial} {worker.label}")
        encoded = batches is not None and busy == 1 and worker.trial is not None
        table.add_row(_one_line(_name(now, worker)), what, f"{batches[0]}/{batches[1]}" if batches and encoded else "")
    return table


def _name(now: Snapshot, worker: WorkerState) -> str:
    """Workers of several processes may have the same names."""
    if len(now.coordinators) == 1:
        return worker.name
    at = next((f"{c.host}:{c.pid}" for c in now.coordinators if c.id == worker.coordinator), "")
    return f"{worker.name} of {at}"


def _drivers(now: Snapshot) -> list[str]:
    """Who drives the study, what they are told, and what nobody drives."""
    names = [f"process {c.pid} on {c.host}" for c in now.coordinators]
    driven = "; ".join(names) if len(names) <= MOST_DRIVERS else f"{len(names)} processes"
    orphaned = now.counts.get("orphaned", 0)
    notes = asides(now.wanted, now.file, orphaned, driven=bool(names))
    return [f"driven by {driven}" if names else "nobody runs it", *notes]


def _grid(*columns: str) -> Table:
    """Columns of which the middle or first one of words gives way where it is narrow; numbers never do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in columns:
        table.add_column(justify=justify, no_wrap=justify == "right")  # type: ignore[arg-type]
    return table


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def duration(seconds: float) -> str:
    """A time in its two largest units: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
