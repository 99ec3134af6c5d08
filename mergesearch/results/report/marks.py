"""The smallest parts of a drawn figure: elements, colours, lines, markers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup, escape
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from mergesearch.results.figures import drawing
from mergesearch.results.report.axes import number
from mergesearch.results.report.text import readable

COLOURS = {
    getattr(drawing, name): f"var(--{name.lower()})"
    for name in ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "SKY", "BLACK", "GREY")
}
"""What the figures' colours are called in the page's style, where light and dark pages have their own."""
STEPS = 24
"""Of the figures' colour scale: `--s0` to `--s23` in the page's style, lighter at the low end on dark pages."""
DARKEST_ON_DARK = 0.4
"""Where on the scale the low end is on dark pages: there it has a contrast of 3 to 1."""
_PLAIN = re.compile(r"#[0-9a-fA-F]{3,8}|rgba?\([\d., ]+\)|[a-z]+")
_DASHES = {"dash": "6 4", "dot": "1.5 3.5", "dashdot": "6 3 1.5 3", "longdash": "10 4", "longdashdot": "10 3 1.5 3"}

Point = tuple[float, float, int]
"""A place in pixels and the number of its datum."""


def tag(element: str, *inside: Markup, **attributes: object) -> Markup:
    """An element; `class_` is the attribute `class`, and `stroke_width` is `stroke-width`."""
    said = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-") if name != "viewBox" else name, value)
        for name, value in attributes.items()
    )
    return Markup("<{}{}>{}</{}>").format(element, said, Markup("").join(inside), element)


def text(x: float, y: float, words: str, *, anchor: str, class_: str = "tick") -> Markup:
    """Words at a place."""
    return tag("text", escape(readable(words)), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def paint(colour: Any) -> str:
    """A colour of a figure as the page's style has it."""
    if isinstance(colour, str):
        if colour in COLOURS:
            return COLOURS[colour]
        if colour.startswith("rgb(") and (step := _steps().get(_hex(colour))) is not None:
            return f"var(--s{step})"
        if _PLAIN.fullmatch(colour):
            return colour
    return "var(--blue)"


def stroke(line: Any) -> dict[str, object]:
    """Attributes of a line."""
    found: dict[str, object] = {
        "class_": "line",
        "stroke": paint(line.color),
        "stroke_width": 2 if line.width is None else line.width,
    }
    if line.dash in _DASHES:
        found["stroke_dasharray"] = _DASHES[line.dash]
    return found


def path(points: Sequence[Point], shape: str | None) -> str:
    """Lines from point to point: straight, or in steps as plotly's line shapes."""
    parts = []
    for i, (x, y, n) in enumerate(points):
        if i == 0 or n != points[i - 1][2] + 1:  # a datum without a value is a gap
            parts.append(f"M{x:.1f} {y:.1f}")
        elif shape == "hv":
            parts.append(f"H{x:.1f}V{y:.1f}")
        elif shape == "vh":
            parts.append(f"V{y:.1f}H{x:.1f}")
        elif shape == "hvh":
            parts.append(f"H{(points[i - 1][0] + x) / 2:.1f}V{y:.1f}H{x:.1f}")
        else:
            parts.append(f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def marker(symbol: str, x: float, y: float, radius: float, colour: str, tip: Markup, opacity: Any = None) -> Markup:
    """One point; what it is called shows when the pointer rests on it."""
    faint: dict[str, object] = {} if opacity is None else {"fill_opacity": opacity}
    kind, size = symbol.split("-")[0], f"{radius:.1f}"
    if kind in ("x", "cross"):
        width = 2 * radius
        d = f"M{x - radius:.1f} {y - radius:.1f}l{width:.1f} {width:.1f}m0 {-width:.1f}l{-width:.1f} {width:.1f}"
        return tag("path", tip, d=d, class_="line", stroke=colour, stroke_width=1.5)
    corners = {"star": 10, "diamond": 4, "square": 4, "triangle": 3}.get(kind)
    if corners is None:
        return tag("circle", tip, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, fill=colour, class_="dot", **faint)
    turn = math.pi / 4 if kind == "square" else 0.0
    places = []
    for k in range(corners):
        reach = radius * (0.45 if kind == "star" and k % 2 else 1.15)
        angle = turn - math.pi / 2 + 2 * math.pi * k / corners
        places.append(f"{x + reach * math.cos(angle):.1f},{y + reach * math.sin(angle):.1f}")
    return tag("polygon", tip, points=" ".join(places), fill=colour, class_="dot", **faint)


def values(data: Any) -> list[Any]:
    """The data of one axis as plain Python: numbers, texts, None."""
    return [] if data is None else np.asarray(data, dtype=object).ravel().tolist()


def placed(value: Any) -> bool:
    """Whether it has a place on an axis."""
    return isinstance(value, str) or number(value)


def numeric(data: Any) -> bool:
    """Whether a colour is one number per point."""
    return data is not None and not isinstance(data, str) and all(map(number, values(data)))


def colours(data: Any, scale: Any, low: float | None = None, high: float | None = None) -> list[str | None]:
    """A colour for every number, None for what is none."""
    found: NDArray[np.float64] = np.array([v if number(v) else np.nan for v in values(data)], dtype=np.float64)
    known = found[np.isfinite(found)]
    if not len(known):
        return [None] * len(found)
    low, high = float(known.min()) if low is None else low, float(known.max()) if high is None else high
    shares = np.clip((found - low) / ((high - low) or 1.0), 0.0, 1.0)
    if own(scale):
        return [f"var(--s{round(s * (STEPS - 1))})" if math.isfinite(s) else None for s in shares]
    sampled: Iterator[str] = iter(
        _hex(c) for c in sample_colorscale(_listed(scale), shares[np.isfinite(shares)].tolist())
    )
    return [next(sampled) if math.isfinite(s) else None for s in shares]


def own(scale: Any) -> bool:
    """Whether it is the figures' own scale, of which the page's style has the colours."""
    figures_own = go.Heatmap(colorscale=drawing.SCALE).colorscale
    return scale is None or tuple(map(tuple, scale)) == tuple(map(tuple, figures_own))


def _listed(scale: Any) -> list[list[Any]]:
    """As plotly samples it."""
    return [list(stop) for stop in scale]


def gradient(scale: Any) -> str:
    """The scale from left to right, in CSS."""
    stops = [f"var(--s{k})" for k in range(STEPS)] if own(scale) else map(_hex, sample_colorscale(_listed(scale), 9))
    return f"linear-gradient(90deg,{','.join(stops)})"


def scale_style() -> str:
    """The figures' scale as custom properties, for light pages and for dark ones."""

    def properties(low: float) -> str:
        colours = sample_colorscale(drawing.SCALE, np.linspace(low, 1.0, STEPS).tolist())
        return ";".join(f"--s{k}:{_hex(c)}" for k, c in enumerate(colours))

    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{properties(DARKEST_ON_DARK)}}}}}"
    return f":root{{{properties(0.0)}}}\n{dark}\n"


@cache
def _steps() -> dict[str, int]:
    """Every colour of the scale, finely sampled, to its step."""
    fine = np.linspace(0.0, 1.0, 1001)
    return {
        _hex(c): round(s * (STEPS - 1))
        for s, c in zip(fine, sample_colorscale(drawing.SCALE, fine.tolist()), strict=True)
    }


def _hex(colour: str) -> str:
    red, green, blue = (round(float(part)) for part in re.findall(r"[\d.]+", colour)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
