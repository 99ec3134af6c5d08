"""Figures drawn as SVG: every datum has its place, and no text of others becomes markup."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from mergesearch.evaluation.significance import Comparison
from mergesearch.results.figures.drawing import BLUE, SCALE, framed
from mergesearch.results.report.axes import Axis
from mergesearch.results.report.intervals import HEIGHT, WIDTH, Forest
from mergesearch.results.report.marks import STEPS, scale_style
from mergesearch.results.report.svg import draw

NUMBERS = st.floats(-1e6, 1e6).map(lambda v: round(v, 4))
HOSTILE = "</title><script>alert(1)</script>\"'&\0\u202e🦊"


def svg(figure: go.Figure, size: str = "wide", panel: int = 0) -> ElementTree.Element:
    """One panel, parsed: what is not well formed fails."""
    markup = draw(figure, "f", "A figure").panels[panel][1][size]
    assert isinstance(markup, Markup)
    return ElementTree.fromstring(str(markup))


def places(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(e.get("cx", "nan")), float(e.get("cy", "nan"))) for e in root.iter("circle")]


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(2, 12))
def test_ticks_are_few_even_and_inside(values: list[float], wanted: int) -> None:
    axis = Axis.over(values, wanted=wanted).placed(10, 500)
    assert 1 <= len(axis.ticks) <= 2 * wanted + 2
    at = [axis(value) for value, _ in axis.ticks]
    assert all(10 - 1e-6 <= p <= 500 + 1e-6 for p in at)
    gaps = [b - a for a, b in pairwise(at)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps)) if gaps else True
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert all(10 - 1e-6 <= axis(v) <= 500 + 1e-6 for v in values)


@given(st.lists(NUMBERS, min_size=2, max_size=20, unique=True))
def test_an_axis_keeps_order(values: list[float]) -> None:
    axis = Axis.over(values, wanted=5).placed(0, 300)
    at = [axis(v) for v in sorted(values)]
    assert at == sorted(at)


def test_names_and_logarithms_have_axes() -> None:
    named = Axis.over(["low", "high", "low"], wanted=5).placed(0, 100)
    assert [label for _, label in named.ticks] == ["low", "high"]
    assert named("low") < named("high")
    log = Axis.over([0.01, 100.0], wanted=5, log=True).placed(0, 100)
    assert log(1.0) == pytest.approx(50)
    assert {value for value, _ in log.ticks} >= {0.1, 1.0, 10.0}


@settings(max_examples=25)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_every_point_is_drawn_inside(points: list[tuple[float, float]]) -> None:
    x, y = zip(*points, strict=True)
    figure = framed([go.Scatter(x=x, y=y, mode="markers", name="points")], "t", "x", "y")
    for size in ("wide", "narrow"):
        root = svg(figure, size)
        _, _, width, height = map(float, root.get("viewBox", "").split())
        assert len(places(root)) == len(points)
        assert all(0 <= a <= width and 0 <= b <= height for a, b in places(root))
    drawing = draw(figure, "f", "t")
    assert len(drawing.rows) == len(points)


def test_higher_is_higher_and_farther_is_farther() -> None:
    (first, second) = places(svg(framed([go.Scatter(x=[0, 1], y=[0, 1], mode="markers")], "t", "x", "y")))
    assert first[0] < second[0]
    assert first[1] > second[1]


def test_gaps_in_the_data_are_gaps_in_the_line() -> None:
    figure = framed([go.Scatter(x=[0, 1, 2, 3], y=[0.0, 1.0, None, 2.0], mode="lines")], "t", "x", "y")
    (line,) = [e.get("d", "") for e in svg(figure).iter("path") if e.get("class") == "line"]
    assert line.count("M") == 2


def test_bars_are_as_long_as_their_numbers() -> None:
    figure = framed([go.Bar(x=[1.0, 2.0, 4.0], y=["a", "b", "c"], orientation="h")], "t", "x", "y")
    widths = [float(e.get("width", "nan")) for e in svg(figure).iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.3)


def test_cells_have_the_colours_of_their_numbers() -> None:
    heat = framed([go.Heatmap(x=[0, 1], y=[0, 1], z=[[0.1, 0.2], [None, 0.4]], colorscale=SCALE)], "t", "x", "y")
    fills = [e.get("fill") for e in svg(heat).iter("rect")]
    assert fills == ["var(--s0)", f"var(--s{round((STEPS - 1) / 3)})", f"var(--s{STEPS - 1})"]
    assert draw(heat, "f", "t").scale is not None
    contour = framed(
        [go.Contour(x=[0, 1], y=[0, 1], z=np.arange(4.0).reshape(2, 2), colorscale="Viridis")], "t", "", ""
    )
    assert len({e.get("fill") for e in svg(contour).iter("rect")}) > 20
    assert all(f"--s{k}:" in scale_style() for k in range(STEPS))


def test_several_panels_come_one_below_the_other() -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, subplot_titles=["one", "two"])
    figure.add_trace(go.Scatter(x=["a", "b"], y=[1, 2], name="line", line={"color": BLUE}), row=1, col=1)
    figure.add_trace(go.Scatter(x=["a", "b"], y=[2, 1], showlegend=False), row=2, col=1)
    drawing = draw(figure, "f", "t")
    assert [title for title, _ in drawing.panels] == ["one", "two"]
    assert [name for _, name in drawing.legend] == ["line"]


def test_text_of_others_stays_text() -> None:
    figure = framed(
        [go.Scatter(x=[1, 2], y=[HOSTILE, "b"], text=[HOSTILE, HOSTILE], mode="markers", name=HOSTILE)],
        HOSTILE,
        HOSTILE,
        "",
    )
    drawing = draw(figure, "f", HOSTILE)
    for markup in drawing.panels[0][1].values():
        assert "<script" not in markup
        assert "\0" not in markup
        root = ElementTree.fromstring(str(markup))
        assert not list(root.iter("script"))


@given(st.lists(st.tuples(NUMBERS, st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6))
def test_intervals_are_drawn_on_one_scale(found: list[tuple[float, float, float]]) -> None:
    comparisons = [Comparison(m, (m - a, m + b), 0.5, 0.5, 9) for m, a, b in found]
    forest = Forest.of(comparisons)
    zeros = set()
    for comparison in comparisons:
        root = ElementTree.fromstring(str(forest.draw(comparison)))
        zeros.add(next(e.get("d") for e in root.iter("path") if e.get("class") == "zero"))
        ((x, y),) = places(root)
        assert 0 <= x <= WIDTH
        assert y == HEIGHT / 2
        low, high = (float(v) for v in re.findall(r"M(-?[\d.]+) [\d.]+H(-?[\d.]+)", str(forest.draw(comparison)))[0])
        assert low - 0.1 <= x <= high + 0.1
        assert math.isfinite(low + high)
    assert len(zeros) == 1
