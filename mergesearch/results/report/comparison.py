"""Studies side by side as a page of the style of reports."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from mergesearch.results.comparing import Pair, Studies
from mergesearch.results.figures.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, framed, stairs
from mergesearch.results.report.intervals import Forest
from mergesearch.results.report.page import Figure, page
from mergesearch.results.report.svg import draw
from mergesearch.results.view import StudyView, TrialView

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")


def render_comparison(studies: Studies, views: Sequence[StudyView]) -> str:
    """The page as HTML; `views` are those that `studies` was made of, in the same order."""
    plot = best_together([c.name for c in studies.columns], views)
    figures = []
    if plot is not None:
        shows = "The highest dev score of each study after so many encoded tokens. Dev scores are selection scores."
        figures.append(Figure("together", "Best so far of all", shows, draw(plot, "together", "Best so far of all"), 0))
    compared = [p.comparison for p in studies.pairs if p.comparison is not None]
    forest = Forest.of(compared)
    return page(
        "comparison.html.j2",
        studies=studies,
        figures=figures,
        forest=forest,
        headline=headline(studies),
        most_data=400,
    )


def headline(studies: Studies) -> str:
    """What the paired tests say, in a sentence."""
    clear = [p for p in studies.pairs if p.comparison is not None and p.p_holm < 0.05]
    if clear:
        return " ".join(_sentence(p) for p in clear)
    if studies.pairs:
        return "On test queries no study's merge is clearly better than another's."
    return "No two of these studies were read on the same test queries, so nothing can be said of which is better."


def best_together(names: Sequence[str], views: Sequence[StudyView]) -> go.Figure | None:
    """Best so far against tokens encoded, a line per study; None where nothing is scored."""
    each = enumerate(zip(names, views, strict=True))
    lines = [_line(i, name, view, best) for i, (name, view) in each if (best := view.best_so_far())]
    metrics = " or ".join(dict.fromkeys(v.metric for v in views))
    return framed(lines, "Best so far", "tokens encoded", f"{metrics} (dev, selection score)") if lines else None


def _line(i: int, name: str, view: StudyView, best: Sequence[tuple[TrialView, float]]) -> go.Scatter:
    line = {"color": _COLOURS[i % 7], "dash": _DASHES[i % 4], "width": 2.5}
    return stairs(best, lambda t: view.tokens_by_then[t.number], line=line, name=f"{name}: {best[-1][1]:.4f}")


def _sentence(pair: Pair) -> str:
    assert pair.comparison is not None
    better, worse = (pair.first, pair.second) if pair.comparison.mean_difference > 0 else (pair.second, pair.first)
    difference = abs(pair.comparison.mean_difference)
    return f"On {pair.where} the merge of {better} is better than that of {worse} by {difference:.4f}."
