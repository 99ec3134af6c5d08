"""What each merge scores in two objectives, and which of them nothing beats."""

from __future__ import annotations

import plotly.graph_objects as go

from mergesearch.results.figures.drawing import BLUE, GREY, ORANGE, StudyFigure, framed, rounded, thinned, trial_words
from mergesearch.results.view import StudyView, TrialView


def front(view: StudyView) -> go.Figure | None:
    """Trials by the first two objectives; those on the Pareto front of all objectives are joined."""
    objectives = view.study.objectives
    if not view.scored or not objectives.several:
        return None
    x, y = objectives.names[:2]
    values = {t.number: objectives.values(t.result.collections) for t in view.scored if t.result is not None}
    on_front = {point.number for point in (view.choice.front if view.choice else ())}

    def points(trials: list[TrialView], name: str, **looks: object) -> go.Scatter:
        return go.Scatter(
            x=[rounded(values[t.number][x]) for t in trials],
            y=[rounded(values[t.number][y]) for t in trials],
            text=trial_words(trials),
            hovertemplate="%{text}<br>%{x:.4f}, %{y:.4f}<extra></extra>",
            name=name,
            **looks,
        )

    beaten = thinned([t for t in view.ranked if t.number not in on_front])
    set_aside = thinned([t for t in view.scored if not t.kept])
    best = sorted((t for t in view.scored if t.number in on_front), key=lambda t: values[t.number][x])
    alone = [t for t in view.sources.values() if t.number in values]
    traces = [
        points(beaten, "beaten by another trial", mode="markers", marker={"color": GREY, "size": 7}),
        points(thinned(best), "Pareto front", mode="lines+markers", marker={"color": BLUE, "size": 9}),
        points(
            alone,
            "source alone",
            mode="markers",
            marker={"symbol": "circle-open", "color": ORANGE, "size": 14, "line": {"width": 2}},
        ),
    ]
    if set_aside:
        lost = {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": GREY}}
        traces.append(points(set_aside, "lost more than it may elsewhere", mode="markers", marker=lost))
    more = "" if len(objectives.names) == 2 else f", the first two of {len(objectives.names)} objectives"
    title = f"{len(best)} merges that no other beats in every objective{more}"
    return framed(traces, title, f"{view.metric} {x} (dev)", f"{view.metric} {y} (dev)")


FRONT = StudyFigure(
    "pareto-front",
    "Objectives",
    "Where a study has several objectives: what every merge scores in the first two, and which of them nothing beats.",
    front,
)
