"""Figures that a study keeps in its database, where optuna-dashboard shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mergesearch.search.strategies.embedding_surrogate import value_at

if TYPE_CHECKING:
    from mergesearch.search.space import SearchSpace
    from mergesearch.surrogate.report import ScreeningReport

LANDSCAPE = "predicted-landscape"
"""The id of the figure in the study."""


def landscape(report: ScreeningReport, space: SearchSpace, metric: str) -> go.Figure:
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
    # A plain template: the default one is larger than the figure, and a study's attributes are read often.
    layout = {"title": f"predicted {metric} (dev)", "template": "none"}
    if len(axes) == 1:
        return go.Figure(
            go.Scatter(x=axes[0], y=list(found.means)),
            {**layout, "xaxis": {"title": names[0]}, "yaxis": {"title": metric}},
        )
    means = np.array(found.means).reshape(len(axes[0]), len(axes[1]))
    return go.Figure(
        go.Contour(x=axes[0], y=axes[1], z=means.T.round(4).tolist(), colorbar={"title": metric}),
        {**layout, "xaxis": {"title": names[0]}, "yaxis": {"title": names[1]}},
    )
