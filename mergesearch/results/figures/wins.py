"""What a merge wins and loses, query by query, against the model it started from."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from mergesearch.results.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    StudyFigure,
    framed,
    rounded,
    short,
)
from mergesearch.results.figures.drawing import thinned as thin
from mergesearch.results.view import StudyView, TrialView

TIE = 1e-9
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)


def wins(view: StudyView) -> go.Figure | None:
    """Differences of scores on every dev query, the largest gain first, one line per collection."""
    merge, source, name = _pair(view)
    if merge is None or source is None or merge.result is None or source.result is None:
        return None
    lines = []
    for i, (ours, theirs) in enumerate(zip(merge.result.collections, source.result.collections, strict=True)):
        differences = ours.scores - theirs.scores
        order = np.argsort(-differences, kind="stable")
        n, most = len(order), max(8, 400 // len(merge.result.collections))
        won, lost = int((differences > TIE).sum()), int((differences < -TIE).sum())
        shown = thin(list(enumerate(order)), most)
        lines.append(
            go.Scatter(
                x=[rounded(100 * (k + 0.5) / n, 2) for k, _ in shown],
                y=[rounded(differences[q], 4) for _, q in shown],
                mode="lines",
                line={"shape": "hvh", "color": COLOURS[i % len(COLOURS)], "width": 2},
                fill="tozeroy" if len(merge.result.collections) == 1 else None,
                text=[short(ours.query_ids[q], 24) for _, q in shown],
                hovertemplate="query %{text}: %{y:+.4f}<extra></extra>",
                name=f"{ours.collection}: {won} won, {n - won - lost} tied, {lost} lost",
                showlegend=True,
            )
        )
    title = f"Trial {merge.number} against {name}, query by query"
    return framed(lines, title, "dev queries, from largest gain to largest loss (%)", f"difference in {view.metric}")


def _pair(view: StudyView) -> tuple[TrialView | None, TrialView | None, str]:
    """The chosen merge, or the highest one where a source was chosen; and the template, or the best source."""
    template = view.study.parsed.content.merge.template
    alone = view.sources
    if not alone:
        return None, None, ""
    name = template if template in alone else max(alone, key=lambda s: alone[s].value or 0.0)
    of_sources = {t.number for t in alone.values()}
    merge = next((t for t in (view.chosen, *view.ranked) if t is not None and t.number not in of_sources), None)
    return merge, alone[name], f"{name} alone"


WINS = StudyFigure(
    "wins-and-losses",
    "Wins and losses by query",
    "By how much each dev query is better or worse with the merge than with the retriever alone.",
    wins,
)
