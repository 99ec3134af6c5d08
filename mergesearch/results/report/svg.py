"""Figures as inline SVG: drawn from the same plotly figures that a study keeps, without plotly's five megabytes.

A page with them follows light and dark, prints, needs no script, and can be sent by mail. What is drawn: scatter traces
(lines, steps, markers, error bars, filled to zero), bars, heat maps and contours, and straight lines among a layout's
shapes; panels come one below the other. Other traces are left out, and their data are in the table all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup, escape
from numpy.typing import NDArray

from mergesearch.results.report import marks
from mergesearch.results.report.axes import Axis, categories, number
from mergesearch.results.report.marks import paint, tag, values
from mergesearch.results.report.text import readable

WIDTHS = {"wide": (836, 370), "narrow": (330, 290)}
"""Two sizes of every panel, in pixels, one of which is shown: text is to be read, and so is not scaled."""
MOST_CELLS = 36
"""Along each side of a contour plot, which is drawn in cells."""
_KINDS = ("scatter", "bar", "heatmap", "contour")


@dataclass(frozen=True)
class Drawing:
    """A figure on a page.

    Attributes:
        panels: by panel its title and the SVG of every width.
        legend: (swatch, name) of the traces that have a name.
        scale: (lowest, highest, CSS gradient, title) of colours that stand for numbers; None where none do.
        summary: what is seen, a sentence per trace, for people who do not see it.
        columns, rows: the data.
    """

    panels: tuple[tuple[str, dict[str, Markup]], ...]
    legend: tuple[tuple[Markup, str], ...]
    scale: tuple[str, str, str, str] | None
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw(figure: go.Figure, name: str, title: str) -> Drawing:
    """Draw a figure; `name` is unique on the page."""
    by_panel: dict[tuple[str, str], list[Any]] = {}
    for trace in figure.data:
        by_panel.setdefault((trace.xaxis or "x", trace.yaxis or "y"), []).append(trace)
    summary = " ".join(filter(None, map(_sentence, figure.data)))
    titles = [readable(a.text) for a in figure.layout.annotations]
    titles = titles if len(titles) == len(by_panel) else [""] * len(by_panel)
    panels = []
    for i, ((x, y), traces) in enumerate(by_panel.items()):
        share = 1.0 if len(by_panel) == 1 else 0.62
        drawn = {
            size: _Panel(figure, traces, x, y, width, round(share * height)).svg(f"{name}-{i}-{size}", title, summary)
            for size, (width, height) in WIDTHS.items()
        }
        panels.append((titles[i], drawn))
    shown = [t for t in figure.data if t.name and t.showlegend is not False and t.type in _KINDS]
    legend = tuple((_swatch(t), readable(t.name)) for t in shown if t.type in ("scatter", "bar"))
    columns, rows = _table(figure)
    return Drawing(tuple(panels), legend, _scale(figure), summary, columns, rows)


class _Panel:
    """One pair of axes in one size."""

    def __init__(self, figure: go.Figure, traces: Sequence[Any], x: str, y: str, width: int, height: int) -> None:
        layout = figure.layout
        self._traces = [t for t in traces if t.type in _KINDS]
        x_layout, y_layout = layout["xaxis" + x[1:]], layout["yaxis" + y[1:]]
        self._x_title, self._y_title = readable(x_layout.title.text), readable(y_layout.title.text)
        self._lines = [s for s in layout.shapes if s.type == "line" and (s.xref in (None, x) or s.yref in (None, y))]
        xs = [v for t in self._traces for v in _extent(t, "x")] + _ends(self._lines, "x")
        ys = [v for t in self._traces for v in _extent(t, "y")] + _ends(self._lines, "y")
        names = categories(ys)
        if names is not None:
            height = max(height // 2, 74 + 26 * len(names))
        down = _axis(ys, y_layout, 5)
        longest = max((len(label) for _, label in down.ticks), default=0)
        left = min(max(28, 12 + round(6.8 * longest)), round(0.42 * width))
        named = categories(xs) is not None or x_layout.tickvals is not None
        across = _axis(xs, x_layout, max(3, (width - left) // (90 if named else 70)))
        self._width, self._height = width, height
        self._box = (left, 30 if self._y_title else 12, width - 16, height - (48 if self._x_title else 28))
        self._x = across.placed(self._box[0], self._box[2])
        self._y = down.placed(self._box[3], self._box[1])

    def svg(self, name: str, title: str, summary: str) -> Markup:
        return tag(
            "svg",
            tag("title", escape(readable(title)), id=f"{name}-t"),
            tag("desc", escape(summary), id=f"{name}-d"),
            *self._grid(),
            *(mark for t in self._traces for mark in self._trace(t)),
            *self._straight(),
            viewBox=f"0 0 {self._width} {self._height}",
            width=self._width,
            height=self._height,
            role="img",
            aria_labelledby=f"{name}-t",
            aria_describedby=f"{name}-d",
            class_="plot",
        )

    def _grid(self) -> Iterable[Markup]:
        left, _, right, bottom = self._box
        for value, label in self._y.ticks:
            at = self._y(value)
            yield tag("path", d=f"M{left} {at:.1f}H{right}", class_="grid")
            yield marks.text(left - 7, at + 4, readable(label, max(4, round((left - 8) / 6.6))), anchor="end")
        room = max(6, round((right - left) / max(1, len(self._x.ticks)) / 6.8))
        for value, label in self._x.ticks:
            at = self._x(value)
            yield tag("path", d=f"M{at:.1f} {bottom}v4", class_="axis")
            words = readable(label, room)
            beyond = at + 3.4 * len(words) > self._width
            yield marks.text(
                self._width - 1 if beyond else at, bottom + 18, words, anchor="end" if beyond else "middle"
            )
        yield tag("path", d=f"M{left} {bottom}H{right}", class_="axis")
        if self._y_title:
            yield marks.text(2, 14, readable(self._y_title, self._width // 7), anchor="start", class_="name")
        if self._x_title:
            title = readable(self._x_title, self._width // 7)
            yield marks.text(right, self._height - 6, title, anchor="end", class_="name")

    def _straight(self) -> Iterable[Markup]:
        left, top, right, bottom = self._box
        for line in self._lines:
            x0, x1 = (self._x(line.x0), self._x(line.x1)) if _in_data(line.xref) else (left, right)
            y0, y1 = (self._y(line.y0), self._y(line.y1)) if _in_data(line.yref) else (bottom, top)
            yield tag("path", d=f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}", **marks.stroke(line.line))

    def _trace(self, trace: Any) -> Iterable[Markup]:
        if trace.type in ("heatmap", "contour"):
            return self._cells(trace)
        return self._bars(trace) if trace.type == "bar" else self._scatter(trace)

    def _scatter(self, trace: Any) -> Iterable[Markup]:
        xs, ys = values(trace.x), values(trace.y)
        points = [
            (self._x(x), self._y(y), i)
            for i, (x, y) in enumerate(zip(xs, ys, strict=False))
            if marks.placed(x) and marks.placed(y)
        ]
        mode = trace.mode or ("lines+markers" if len(points) < 20 else "lines")
        if "lines" in mode and points:
            d = marks.path(points, trace.line.shape)
            if trace.fill == "tozeroy":
                zero = self._y(0.0)
                closed = f"{d}V{zero:.1f}H{points[0][0]:.1f}Z"
                yield tag("path", d=closed, fill=paint(trace.line.color), fill_opacity=0.18)
            yield tag("path", d=d, **marks.stroke(trace.line))
        if "markers" in mode:
            yield from self._markers(trace, points, xs, ys)

    def _markers(self, trace: Any, points: Sequence[marks.Point], xs: list[Any], ys: list[Any]) -> Iterable[Markup]:
        drawn, colours = trace.marker, _colours(trace)
        sizes, symbols, words = (_each(v, len(xs)) for v in (drawn.size, drawn.symbol, trace.text))
        x_errors, y_errors = values(trace.error_x.array), values(trace.error_y.array)
        line = getattr(trace, "line", None)
        plain = paint(drawn.color if drawn.color is not None else line.color if line is not None else None)
        for x, y, i in points:
            colour = (colours[i] if colours is not None else plain) or plain
            for errors, horizontal in ((x_errors, True), (y_errors, False)):
                if i < len(errors) and number(errors[i]) and errors[i]:
                    axis, centre = (self._x, xs[i]) if horizontal else (self._y, ys[i])
                    low, high = axis(centre - errors[i]), axis(centre + errors[i])
                    d = f"M{low:.1f} {y:.1f}H{high:.1f}" if horizontal else f"M{x:.1f} {low:.1f}V{high:.1f}"
                    yield tag("path", d=d, class_="line", stroke="var(--grey)", stroke_width=1)
            said = " ".join(filter(None, (readable(words[i]), f"({_shown(xs[i])}, {_shown(ys[i])})")))
            tip = tag("title", escape(said))
            symbol = symbols[i] if isinstance(symbols[i], str) else "circle"
            radius = float(sizes[i] if number(sizes[i]) else 6) / 2
            yield marks.marker(symbol, x, y, radius, colour, tip, drawn.opacity)

    def _bars(self, trace: Any) -> Iterable[Markup]:
        flat = trace.orientation == "h"
        along, across = (self._x, self._y) if flat else (self._y, self._x)
        lengths, places = (trace.x, trace.y) if flat else (trace.y, trace.x)
        beside = [t for t in self._traces if t.type == "bar"]
        n, mine = len(beside), next(i for i, t in enumerate(beside) if t is trace)
        thick = max(1.5, 0.72 * across.spacing(values(places)) / n)
        colours = _colours(trace)
        for i, (length, place) in enumerate(zip(values(lengths), values(places), strict=False)):
            if not number(length) or not marks.placed(place):
                continue
            start, end = sorted((along(0.0), along(length)))
            side = across(place) + (mine - (n - 1) / 2) * thick - thick / 2
            x, y, width, height = (start, side, end - start, thick) if flat else (side, start, thick, end - start)
            colour = (colours[i] if colours is not None else None) or paint(trace.marker.color)
            tip = tag("title", escape(readable(f"{_shown(place)}: {_shown(length)}")))
            yield _rectangle(x, y, width, height, colour, tip)

    def _cells(self, trace: Any) -> Iterable[Markup]:
        z_YX, xs, ys = _lattice(trace)
        colours = marks.colours(z_YX, trace.colorscale, trace.zmin, trace.zmax)
        at_x, at_y = [self._x(v) for v in _edges(xs)], [self._y(v) for v in _edges(ys)]
        left, top, right, bottom = self._box
        for k, colour in enumerate(colours):
            row, column = divmod(k, len(xs))
            x0, x1 = sorted((at_x[column], at_x[column + 1]))
            y0, y1 = sorted((at_y[row], at_y[row + 1]))
            x0, x1, y0, y1 = max(x0, left), min(x1, right), max(y0, top), min(y1, bottom)
            if colour is not None and x1 > x0 and y1 > y0:
                where = f"({_shown(xs[column])}, {_shown(ys[row])}): {_shown(z_YX[row, column])}"
                tip = tag("title", escape(where)) if trace.type == "heatmap" else Markup("")
                # A little larger: between neighbours rounding would else leave lines.
                yield _rectangle(x0, y0, x1 - x0 + 0.5, y1 - y0 + 0.5, colour, tip)


def _rectangle(x: float, y: float, width: float, height: float, colour: str, tip: Markup) -> Markup:
    return tag("rect", tip, x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", fill=colour)


def _axis(found: Sequence[Any], layout: Any, wanted: int) -> Axis:
    axis = Axis.over(found, log=layout.type == "log", wanted=wanted, limits=layout.range)
    if layout.tickvals is not None:
        labels = layout.ticktext if layout.ticktext is not None else layout.tickvals
        axis = axis.ticked([(v, readable(label)) for v, label in zip(layout.tickvals, labels, strict=False)])
    return axis


def _extent(trace: Any, which: str) -> list[Any]:
    """What an axis has to hold of a trace."""
    if trace.type in ("heatmap", "contour"):
        found = values(trace[which]) or list(range(np.asarray(trace.z, dtype=object).shape[which == "x"]))
        return _edges(found) if trace.type == "heatmap" and categories(found) is None else found
    found = [v for v in values(trace[which]) if marks.placed(v)]
    if trace.type == "bar" and (which == "x") == (trace.orientation == "h"):
        found.append(0.0)
    if trace.type == "scatter":
        if trace.fill == "tozeroy" and which == "y":
            found.append(0.0)
        spread = zip(values(trace[which]), values(trace[f"error_{which}"].array), strict=False)
        found += [end for v, e in spread if number(v) and number(e) for end in (v - e, v + e)]
    return found


def _ends(lines: Sequence[Any], which: str) -> list[Any]:
    return [line[f"{which}{end}"] for line in lines if _in_data(line[f"{which}ref"]) for end in (0, 1)]


def _in_data(reference: str | None) -> bool:
    return reference is None or not ("paper" in reference or "domain" in reference)


def _lattice(trace: Any) -> tuple[NDArray[np.float64], list[Any], list[Any]]:
    """Numbers [Y, X] with the values of both axes; those of a contour plot are interpolated."""
    z_YX = np.array([[v if number(v) else np.nan for v in values(row)] for row in trace.z], dtype=np.float64)
    xs = values(trace.x) or list(range(z_YX.shape[1]))
    ys = values(trace.y) or list(range(z_YX.shape[0]))
    if trace.type == "heatmap" or min(z_YX.shape) < 2 or not all(map(number, [*xs, *ys])):
        return z_YX, xs, ys
    fine_x, fine_y = (np.linspace(min(v), max(v), MOST_CELLS) for v in (xs, ys))
    over_x = np.stack([np.interp(fine_x, xs, row) for row in z_YX])
    return np.stack([np.interp(fine_y, ys, column) for column in over_x.T], axis=1), fine_x.tolist(), fine_y.tolist()


def _edges(places: Sequence[Any]) -> list[float]:
    """Between neighbouring values of an axis, and as far beyond the outermost."""
    at = list(range(len(places))) if categories(places) is not None else [float(p) for p in places]
    middles = [(a + b) / 2 for a, b in pairwise(at)]
    if not middles:
        return [at[0] - 0.5, at[0] + 0.5]
    return [2 * at[0] - middles[0], *middles, 2 * at[-1] - middles[-1]]


def _colours(trace: Any) -> list[str | None] | None:
    """A colour per point where points have their own; None where all have the trace's."""
    given = trace.marker.color
    if given is None or isinstance(given, str):
        return None
    if marks.numeric(given):
        return marks.colours(given, trace.marker.colorscale, trace.marker.cmin, trace.marker.cmax)
    return [paint(c) for c in values(given)]


def _each(given: Any, n: int) -> list[Any]:
    """One per point, of what may be given once for all."""
    return [given] * n if given is None or isinstance(given, str | int | float) else values(given)


def _scale(figure: go.Figure) -> tuple[str, str, str, str] | None:
    for trace in figure.data:
        if trace.type in ("heatmap", "contour"):
            coloured, data = trace, [v for row in trace.z for v in values(row)]
        elif marks.numeric(trace.marker.color):
            coloured, data = trace.marker, values(trace.marker.color)
        else:
            continue
        numbers = [v for v in data if number(v)]
        if numbers:
            title = readable(coloured.colorbar.title.text).replace("<br>", " ")
            return _shown(min(numbers)), _shown(max(numbers)), marks.gradient(coloured.colorscale), title
    return None


def _swatch(trace: Any) -> Markup:
    """A small picture of a trace."""
    mode = trace.mode or "lines" if trace.type == "scatter" else ""
    line = tag("path", d="M1 7H25", **marks.stroke(trace.line)) if "lines" in mode else Markup("")
    dot = Markup("")
    if "markers" in mode:
        symbol = trace.marker.symbol if isinstance(trace.marker.symbol, str) else "circle"
        colour = paint(trace.marker.color) if isinstance(trace.marker.color, str) else paint(trace.line.color)
        dot = marks.marker(symbol, 13, 7, 4.5, colour, Markup(""), trace.marker.opacity)
    if trace.type == "bar":
        dot = _rectangle(4, 2, 18, 10, paint(trace.marker.color), Markup(""))
    return tag("svg", line, dot, viewBox="0 0 26 14", width=26, height=14, aria_hidden="true")


def _sentence(trace: Any) -> str:
    """What a trace shows, in words."""
    if trace.type in ("heatmap", "contour"):
        numbers = [v for row in trace.z for v in values(row) if number(v)]
        return f"{len(numbers)} cells from {_shown(min(numbers))} to {_shown(max(numbers))}." if numbers else ""
    flat = trace.type == "bar" and trace.orientation == "h"
    numbers = [v for v in values(trace.x if flat else trace.y) if number(v)]
    if not numbers:
        return ""
    name = readable(trace.name) or "values"
    if len(numbers) == 1 or min(numbers) == max(numbers):
        return f"{name}: {_shown(numbers[0])}."
    return f"{name}: {len(numbers)} values from {_shown(min(numbers))} to {_shown(max(numbers))}."


def _table(figure: go.Figure) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """All data of a figure, a row per point."""
    rows: list[tuple[str, ...]] = []
    for i, trace in enumerate(figure.data):
        name = readable(trace.name) or f"series {i + 1}"
        if trace.type in ("heatmap", "contour"):
            z = np.asarray(trace.z, dtype=object)
            xs, ys = values(trace.x) or list(range(z.shape[1])), values(trace.y) or list(range(z.shape[0]))
            rows += [(name, _shown(x), _shown(y), _shown(z[r][c])) for r, y in enumerate(ys) for c, x in enumerate(xs)]
        else:
            said = _each(trace.text, len(values(trace.x)))
            pairs = zip(values(trace.x), values(trace.y), said, strict=False)
            rows += [(name, _shown(x), _shown(y), readable(word)) for x, y, word in pairs]
    x, y = (
        readable(axis.title.text) or letter for axis, letter in ((figure.layout.xaxis, "x"), (figure.layout.yaxis, "y"))
    )
    return ("series", x, y, "value or label"), tuple(rows)


def _shown(value: Any) -> str:
    if not number(value):
        return readable(value)
    return f"{value:.4g}".replace("-", "−") if abs(value) >= 1e-12 else "0"
