"""What all figures have in common: their frame, their colours, and how many points they may hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import plotly.graph_objects as go

from mergesearch.results.view import StudyView, TrialView

T = TypeVar("T")

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#404040",
    "#9a9a9a",
)
"""Colours that readers with any kind of colour vision tell apart (Okabe and Ito, Color Universal Design, 2008)."""
SCALE = "Cividis"
"""From low to high: even in lightness, and the same to every kind of colour vision."""
MOST_BYTES = 40_000
"""Of a figure as JSON: it lies among a study's attributes, which are read often."""
MOST_POINTS = 300
"""Of one trace."""
MOST_LABELS = 100
"""With more trials than that in a figure, only their numbers are shown."""


@dataclass(frozen=True)
class StudyFigure:
    """A figure that can be drawn of a study.

    Attributes:
        name: a valid HTML id, under which a study keeps it.
        title: a few words.
        shows: one sentence on what is seen.
        draw: the plotly figure; None where the study has nothing for it.
    """

    name: str
    title: str
    shows: str
    draw: Callable[[StudyView], go.Figure | None]


def framed(traces: Sequence[Any], title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """A figure with named axes, on white: pages of any colour can show it, and set another background if they like.

    Args:
        traces: of plotly.
        title: above it.
        x: name of the axis, with its unit.
        y: likewise.
        layout: anything else, which goes before what is said here.
    """
    axis = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "automargin": True}
    frame: dict[str, Any] = {
        "title": {"text": title},
        "template": "none",  # the default one is larger than the figure
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
        "legend": {"orientation": "h", "y": -0.25},
        "hoverlabel": {"align": "left"},
    }
    for name, given in layout.items():
        frame[name] = {**frame[name], **given} if isinstance(given, dict) and name in frame else given
    return go.Figure(list(traces), frame)


def thinned(items: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def rounded(value: float, digits: int = 5) -> float:
    """So many digits after the point; JSON grows with every further one."""
    return round(float(value), digits)


def stairs(
    best: Sequence[tuple[TrialView, float]], at: Callable[[TrialView], float], *, line: dict[str, Any], **drawn: Any
) -> go.Scatter:
    """The best so far as a line of level stretches.

    Args:
        best: of `StudyView.best_so_far`, one trial or more.
        at: where a trial lies on the axis.
        line: its colour and the like.
        drawn: further properties of the trace.
    """
    steps = [best[0], *(b for a, b in pairwise(best) if b[1] > a[1]), best[-1]]
    return go.Scatter(
        x=[rounded(at(t)) for t, _ in steps],
        y=[rounded(value) for _, value in steps],
        mode="lines",
        line={"shape": "hv", **line},
        **drawn,
    )


def trial_words(trials: Sequence[TrialView]) -> list[str]:
    """What is shown of each trial where a pointer rests on it."""
    stopped = ["" if t.value is not None else " (stopped early, estimate)" for t in trials]
    labels = [f": {short(t.label, 40)}" if len(trials) <= MOST_LABELS and t.label else "" for t in trials]
    return [f"trial {t.number}{s}{label}" for t, s, label in zip(trials, stopped, labels, strict=True)]


def short(text: str, most: int = 60) -> str:
    """The beginning of a text, with a sign where more would follow."""
    return text if len(text) <= most else text[: most - 1] + "…"
