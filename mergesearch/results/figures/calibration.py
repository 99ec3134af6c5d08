"""What was predicted of merges before they were evaluated, against what was measured then."""

from __future__ import annotations

import plotly.graph_objects as go

from mergesearch.results.figures.drawing import BLACK, SCALE, StudyFigure, framed, rounded, short, thinned
from mergesearch.results.view import StudyView


def calibration(view: StudyView) -> go.Figure | None:
    """Every trial that was predicted, with a standard deviation of the prediction to both sides."""
    found = [(t, t.predicted, t.value) for t in view.trials if t.predicted is not None and t.value is not None]
    if not found:
        return None
    error = sum(abs(p - v) for _, p, v in found) / len(found)
    shown = thinned(found)
    low, high = min(min(p, v) for _, p, v in shown), max(max(p, v) for _, p, v in shown)
    line = go.Scatter(
        x=[rounded(low), rounded(high)],
        y=[rounded(low), rounded(high)],
        mode="lines",
        line={"color": BLACK, "dash": "dash", "width": 1},
        name="as predicted",
        hoverinfo="skip",
    )
    points = go.Scatter(
        x=[rounded(p) for _, p, _ in shown],
        y=[rounded(v) for *_, v in shown],
        error_x={"type": "data", "array": [rounded(t.deviation or 0.0) for t, *_ in shown], "width": 0, "thickness": 1},
        mode="markers",
        marker={
            "color": [t.number for t, *_ in shown],
            "colorscale": SCALE,
            "colorbar": {"title": {"text": "trial"}},
            "size": 9,
            "line": {"width": 0.5, "color": BLACK},
        },
        text=[f"trial {t.number}: {short(t.label)}" for t, *_ in shown],
        hovertemplate="%{text}<br>predicted %{x:.4f}, measured %{y:.4f}<extra></extra>",
        name="trial, ± 1 standard deviation of its prediction",
    )
    title = f"Predicted and measured: {error:.4f} apart on average"
    return framed([line, points], title, f"predicted {view.metric} (dev)", f"measured {view.metric} (dev)")


CALIBRATION = StudyFigure(
    "predicted-and-measured",
    "Predicted and measured",
    "For trials that the surrogate proposed: the dev score it predicted, and the one that was measured then.",
    calibration,
)
