"""The measured dev scores over the coefficients that they depend on most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mergesearch.results.figures.drawing import (
    BLACK,
    BLUE,
    RED,
    SCALE,
    StudyFigure,
    framed,
    rounded,
    short,
    thinned,
    trial_words,
)
from mergesearch.results.view import StudyView, TrialView
from mergesearch.search.dimension import Dimension

Scored = tuple[TrialView, Mapping[str, float], float]
FULL = 0.8
"""The share of a lattice that has to be evaluated to be drawn as one."""
MOST_CELLS = 1600
"""Of a heat map."""


def landscape(view: StudyView) -> go.Figure | None:
    """Scores over the one or two most important coefficients: a heat map of a lattice, coloured points else."""
    if not view.points or not view.study.space.free:
        return None
    free = view.study.space.by_name
    order = [*view.importances, *(d.name for d in view.study.space.free if d.name not in view.importances)]
    names = order[:2]
    title = "Measured dev scores"
    if len(order) > 2:
        title += f" over the two most important of {len(order)} coefficients"
    if len(names) == 1:
        return _curve(view, free[names[0]], title)
    x, y = (free[name] for name in names)
    cells = _lattice(view.points, x, y)
    best = max(view.points, key=lambda p: (p[0].kept, p[2]))
    if cells is not None:
        rest = " (highest over the others)" if len(order) > 2 else ""
        shown: Any = go.Heatmap(
            x=list(cells[0]),
            y=list(cells[1]),
            z=cells[2],
            colorscale=SCALE,
            colorbar={"title": {"text": view.metric + " (dev)"}},
            hovertemplate=f"{x.name} %{{x}}<br>{y.name} %{{y}}<br>%{{z:.4f}}<extra></extra>",
        )
        title += rest
    else:
        shown = _cloud(view, x, y)
    return framed([shown, _star(best, x, y)], title, x.name, y.name, xaxis=_axis(x), yaxis=_axis(y), showlegend=True)


def _curve(view: StudyView, x: Dimension, title: str) -> go.Figure:
    ordered = thinned(sorted(view.points, key=lambda p: p[1][x.name]))
    best = max(view.points, key=lambda p: (p[0].kept, p[2]))
    points = go.Scatter(
        x=[rounded(p[x.name]) for _, p, _ in ordered],
        y=[rounded(value) for *_, value in ordered],
        mode="lines+markers",
        line={"color": BLUE, "width": 1},
        marker={"symbol": [_symbol(t) for t, *_ in ordered]},
        text=trial_words([t for t, *_ in ordered]),
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        name="trials",
        showlegend=False,
    )
    star = _star(best, x, None)
    return framed([points, star], title, x.name, f"{view.metric} (dev)", xaxis=_axis(x), showlegend=True)


def _lattice(
    points: Sequence[Scored], x: Dimension, y: Dimension
) -> tuple[tuple[float, ...], tuple[float, ...], list[list[float | None]]] | None:
    """Both axes and the highest score at each crossing, [y][x]; None where the points are scattered."""
    highest: dict[tuple[float, float], float] = {}
    for _, p, value in points:
        at = p[x.name], p[y.name]
        highest[at] = max(value, highest.get(at, -np.inf))
    xs, ys = sorted({a for a, _ in highest}), sorted({b for _, b in highest})
    n = len(xs) * len(ys)
    if not min(len(xs), len(ys)) >= 2 or n > MOST_CELLS or len(highest) < FULL * n:
        return None
    z = [[rounded(highest[a, b]) if (a, b) in highest else None for a in xs] for b in ys]
    return tuple(xs), tuple(ys), z


def _cloud(view: StudyView, x: Dimension, y: Dimension) -> go.Scatter:
    ordered = sorted(thinned(view.points), key=lambda p: p[2])  # the highest on top
    return go.Scatter(
        x=[rounded(p[x.name]) for _, p, _ in ordered],
        y=[rounded(p[y.name]) for _, p, _ in ordered],
        mode="markers",
        marker={
            "color": [rounded(value) for *_, value in ordered],
            "colorscale": SCALE,
            "colorbar": {"title": {"text": view.metric + " (dev)"}},
            "symbol": [_symbol(t) for t, *_ in ordered],
            "size": 10,
            "line": {"width": 0.5, "color": BLACK},
        },
        text=trial_words([t for t, *_ in ordered]),
        hovertemplate="%{text}<br>%{marker.color:.4f}<extra></extra>",
        name="trials",
        showlegend=False,
    )


def _star(best: Scored, x: Dimension, y: Dimension | None) -> go.Scatter:
    trial, point, value = best
    return go.Scatter(
        x=[rounded(point[x.name])],
        y=[rounded(value if y is None else point[y.name])],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": RED, "line": {"width": 1, "color": "white"}},
        name=f"highest: trial {trial.number}, {value:.4f}",
        hoverinfo="name",
    )


def _axis(dimension: Dimension) -> dict[str, Any]:
    if dimension.names:
        numbers = list(range(len(dimension.names)))
        return {"tickvals": numbers, "ticktext": [short(name, 24) for name in dimension.names]}
    return {"type": "log"} if dimension.log else {}


def _symbol(trial: TrialView) -> str:
    return "circle" if trial.value is not None else "x-thin-open"


MEASURED = StudyFigure(
    "measured-landscape",
    "Measured landscape",
    "Dev scores of the evaluated merges over the coefficients that they depend on most.",
    landscape,
)
