"""The highest dev score so far, against what it cost: tokens encoded, and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import plotly.graph_objects as go

from mergesearch.results.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    StudyFigure,
    framed,
    rounded,
    stairs,
    thinned,
    trial_words,
)
from mergesearch.results.view import StudyView, TrialView

PAUSE = timedelta(minutes=10)
"""When no trial ran for longer, the study was not running: predictions between trials take less."""
MOST_LINES = 5
"""Of sources alone."""


def best_by_tokens(view: StudyView) -> go.Figure | None:
    """Best so far against tokens encoded by then, by all trials that had ended, whatever became of them."""
    spent = view.tokens_by_then
    unit, factor = _unit(max(spent.values(), default=0))
    return _draw(view, lambda t: spent[t.number] / factor, f"tokens encoded{unit}", "Best so far by tokens")


def best_by_time(view: StudyView) -> go.Figure | None:
    """Best so far against time; pauses, in which no trial ran for more than ten minutes, are left out."""
    spans = sorted((t.started, t.ended) for t in view.trials if t.started is not None and t.ended is not None)
    if not spans:
        return None
    pauses = _pauses(spans)
    start = spans[0][0]

    def seconds(trial: TrialView) -> float:
        end = trial.ended
        assert end is not None
        return (end - start - sum((length for at, length in pauses if at <= end), timedelta())).total_seconds()

    last = max(seconds(t) for t in view.trials if t.ended is not None)
    unit, factor = next((u for u in (("hours", 3600), ("minutes", 60)) if last > 2 * u[1]), ("seconds", 1))
    return _draw(view, lambda t: seconds(t) / factor, f"time ({unit}, pauses left out)", "Best so far by time")


def _draw(view: StudyView, spent: Callable[[TrialView], float], x: str, title: str) -> go.Figure | None:
    found = view.best_so_far()
    if not found:
        return None
    shown = thinned(found)
    points = go.Scatter(
        x=[rounded(spent(t)) for t, _ in shown],
        y=[rounded(t.value or 0.0) for t, _ in shown],
        text=trial_words([t for t, _ in shown]),
        mode="markers",
        marker={"color": GREY, "size": 6, "opacity": 0.7},
        name="trial",
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
    )
    best = stairs(found, spent, name="best so far", line={"color": BLUE, "width": 3}, hoverinfo="skip")
    end = rounded(spent(found[-1][0]))
    return framed([points, best, *_references(view, end)], title, x, f"{view.metric} (dev, selection score)")


def _references(view: StudyView, end: float) -> list[go.Scatter]:
    """A level line for each source alone, the best first, and for the uniform average."""
    alone = sorted(view.sources.items(), key=lambda s: -(s[1].value or 0.0))[:MOST_LINES]
    lines = [(f"{name} alone", t) for name, t in alone]
    lines += [("uniform average", view.uniform)] if view.uniform is not None else []
    colours = (RED, GREEN, PURPLE, ORANGE, SKY, GREY)
    dashes = ("dash", "dot", "dashdot", "longdash", "longdashdot", "dash")
    return [
        go.Scatter(
            x=[0, end],
            y=[rounded(t.value or 0.0)] * 2,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 1.5},
            name=f"{name} {t.value:.4f}",
            hoverinfo="name",
        )
        for (name, t), colour, dash in zip(lines, colours, dashes, strict=False)
    ]


def _pauses(spans: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, timedelta]]:
    """When a pause ended, and how long it was, of spans in the order of their starts."""
    found, until = [], spans[0][1]
    for start, end in spans:
        if start - until > PAUSE:
            found.append((start, start - until))
        until = max(until, end)
    return found


def _unit(tokens: int) -> tuple[str, int]:
    return next(((f" ({u})", f) for u, f in (("billions", 10**9), ("millions", 10**6)) if tokens > 2 * f), ("", 1))


BY_TOKENS = StudyFigure(
    "best-so-far",
    "Best so far by tokens encoded",
    "The highest dev score after so many encoded tokens, with every trial as a point and sources alone as level lines.",
    best_by_tokens,
)
BY_TIME = StudyFigure(
    "best-so-far-by-time",
    "Best so far by time",
    "The highest dev score after so much time, with every trial as a point and sources alone as level lines.",
    best_by_time,
)
