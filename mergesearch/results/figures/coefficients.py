"""The coefficients of the best trials, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mergesearch.recipe import MergeRecipe
from mergesearch.results.figures.drawing import SCALE, StudyFigure, framed, rounded, short
from mergesearch.results.view import StudyView

MOST_TRIALS = 8
MOST_PANELS = 4
MOST_GROUPS = 64
"""Of a model of more layers, every second group or fewer are shown."""

Key = tuple[str, str]
"""A coefficient and the source that it is for, empty where it is for all."""


def coefficients(view: StudyView) -> go.Figure | None:
    """One panel per coefficient that differs, one line per trial, over the groups in model order."""
    ranked = view.ranked[:MOST_TRIALS]
    recipes = [t.recipe for t in ranked if t.recipe is not None]
    groups = [g for g in view.study.space.groups if any(g == r.name for recipe in recipes[:1] for r in recipe.groups)]
    if not recipes or not groups:
        return None
    keys = _keys(recipes, view)
    values = {key: np.array([[_value(r, g, key) for g in groups] for r in recipes]) for key in keys}
    panels = _panels(values, view)
    if not panels:
        return None
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.2 / len(panels))
    colours = sample_colorscale(
        SCALE, np.linspace(0.0, 0.85, len(recipes)).tolist()
    )  # on white the dark one is seen best
    kept = np.unique(np.linspace(0, len(groups) - 1, min(len(groups), MOST_GROUPS)).round().astype(int))
    for row, key in enumerate(panels, 1):
        for rank in reversed(range(len(recipes))):
            line = go.Scatter(
                x=[short(groups[i], 20) for i in kept],
                y=[rounded(values[key][rank, i], 4) if np.isfinite(values[key][rank, i]) else None for i in kept],
                mode="lines+markers",
                line={"color": colours[rank], "width": 4 if rank == 0 else 1.5},
                marker={"size": 9 if rank == 0 else 6},
                name=f"trial {ranked[rank].number}: {ranked[rank].value:.4f}",
                legendgroup=str(rank),
                legendrank=rank,
                showlegend=row == 1,
            )
            figure.add_trace(line, row=row, col=1)
    return _with_frame(figure, view, panels)


def _with_frame(figure: go.Figure, view: StudyView, panels: list[Key]) -> go.Figure:
    frame = framed([], "Coefficients of the best trials", "", "")
    figure.update_layout(title=frame.layout.title, template="none", legend={"traceorder": "normal"})
    figure.update_xaxes(frame.layout.xaxis)
    figure.update_yaxes(frame.layout.yaxis)
    figure.update_xaxes(title={"text": "group, from the first to the last layer"}, row=len(panels), col=1)
    sources = view.study.method.merged_sources(
        list(view.study.folders), view.study.parsed.content.merge.base, view.study.parsed.content.merge.template
    )
    for row, (name, source) in enumerate(panels, 1):
        of_source = f"<br>of {short(source, 16)}" if source else ""
        figure.update_yaxes(title={"text": f"{name}{of_source}"}, row=row, col=1)
        declared = view.study.method.coefficients.get(name)
        if declared is not None and declared.names_sources:
            names: dict[str, Any] = {"tickvals": list(range(len(sources))), "ticktext": list(sources)}
            figure.update_yaxes(**names, row=row, col=1)
    return figure


def _keys(recipes: list[MergeRecipe], view: StudyView) -> list[Key]:
    """Every searched coefficient, in the order of the recipes; what is measured is no part of a search."""
    found: dict[Key, None] = {}
    for recipe in recipes:
        for group in recipe.groups:
            for name, value in group.coefficients.items():
                if name not in view.study.measured:
                    found.update(
                        dict.fromkeys([(name, s) for s in value] if isinstance(value, Mapping) else [(name, "")])
                    )
    return list(found)


def _value(recipe: MergeRecipe, group: str, key: Key) -> float:
    for g in recipe.groups:
        if g.name == group and key[0] in g.coefficients:
            value = g.coefficients[key[0]]
            return float(value.get(key[1], np.nan)) if isinstance(value, Mapping) else float(value)
    return float("nan")


def _panels(values: dict[Key, NDArray[np.float64]], view: StudyView) -> list[Key]:
    """The coefficients that differ between trials or groups most; not what the others leave over for the template."""
    differing = {key: float(np.nanstd(v)) for key, v in values.items() if np.isfinite(v).any() and np.nanstd(v) > 0}
    template = view.study.parsed.content.merge.template
    for name in {n for n, s in differing if s}:
        of_name = [key for key in values if key[0] == name]
        total = sum(values[key] for key in of_name)
        if np.isfinite(total).all() and np.ptp(total) < 1e-9:
            differing.pop((name, template), None)
    order = list(values)
    most = sorted(differing, key=lambda key: -differing[key])[:MOST_PANELS]
    return sorted(most, key=order.index)


COEFFICIENTS = StudyFigure(
    "coefficients",
    "Coefficients of the best trials",
    "The coefficients of the trials with the highest dev scores in every group of layers.",
    coefficients,
)
