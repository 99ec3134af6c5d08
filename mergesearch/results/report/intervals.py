"""Differences with their intervals as small pictures for the cells of a table, all on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mergesearch.evaluation.significance import Comparison
from mergesearch.results.report.marks import tag

WIDTH, HEIGHT = 130, 22


@dataclass(frozen=True)
class Forest:
    """A common scale for several differences; zero is always on it."""

    low: float
    high: float

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Forest:
        """The scale that holds all intervals."""
        ends = [0.0, *(end for c in comparisons for end in (*c.interval, c.mean_difference))]
        low, high = min(ends), max(ends)
        room = 0.06 * (high - low) or 1.0
        return cls(low - room, high + room)

    def draw(self, comparison: Comparison) -> Markup:
        """A line for the interval, a point for the mean, a dashed line at zero; hidden from screen readers.

        The numbers are in the same row.
        """
        low, high = (self._at(v) for v in comparison.interval)
        mean, zero, middle = self._at(comparison.mean_difference), self._at(0.0), HEIGHT / 2
        clear = comparison.interval[0] > 0 or comparison.interval[1] < 0
        colour = "var(--grey)" if not clear else "var(--good)" if comparison.mean_difference > 0 else "var(--bad)"
        return tag(
            "svg",
            tag("path", d=f"M{zero:.1f} 0V{HEIGHT}", class_="zero"),
            tag("path", d=f"M{low:.1f} {middle}H{high:.1f}", class_="line", stroke=colour, stroke_width=2.5),
            tag("circle", cx=f"{mean:.1f}", cy=middle, r=4.5, fill=colour, class_="dot"),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            width=WIDTH,
            height=HEIGHT,
            aria_hidden="true",
            class_="forest",
        )

    def _at(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) * WIDTH
