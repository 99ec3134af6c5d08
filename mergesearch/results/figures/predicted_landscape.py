"""Predicted dev scores over the coefficients that matter most; drawn by a run, which has the predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mergesearch.results.figures.drawing import BLUE, SCALE, framed, rounded
from mergesearch.search.strategies.embedding_surrogate import value_at

if TYPE_CHECKING:
    from mergesearch.search.space import SearchSpace
    from mergesearch.surrogate.report import ScreeningReport

NAME = "predicted-landscape"
"""The id of the figure in the study."""


def predicted_landscape(report: ScreeningReport, space: SearchSpace, metric: str) -> go.Figure:
    """Predicted dev scores over the coefficients that matter most, elsewhere at the best point.

    Args:
        report: of the newest screening, over the free dimensions of `space`.
        space: the study's.
        metric: for example `ndcg@10`.
    """
    found = report.landscape
    names = [space.free[d].name for d in found.coordinates]
    axes = [
        [value_at(space.free[d], u) for u in positions]
        for d, positions in zip(found.coordinates, found.positions, strict=True)
    ]
    title = (
        "Predicted dev scores, other coefficients at the best point" if len(space.free) > 2 else "Predicted dev scores"
    )
    if len(axes) == 1:
        line = go.Scatter(x=axes[0], y=[rounded(m) for m in found.means], line={"color": BLUE})
        return framed([line], title, names[0], f"{metric} (dev), predicted")
    means = np.array(found.means).reshape(len(axes[0]), len(axes[1]))
    contour = go.Contour(
        x=axes[0],
        y=axes[1],
        z=means.T.round(4).tolist(),
        colorscale=SCALE,
        colorbar={"title": {"text": f"{metric}<br>(dev)"}},
    )
    return framed([contour], title, names[0], names[1])
