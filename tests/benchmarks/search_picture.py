"""A drawing of how search strategies compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def picture(curves: Mapping[str, Sequence[float]], out: Path) -> None:
    """Best dev score against evaluated merges, as an SVG."""
    width, height, left, top = 640, 360, 60, 20
    colours = ["#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#7f8c8d", "#d68910"]
    low = min(min(curve) for curve in curves.values())
    high = max(max(curve) for curve in curves.values())
    n = max(len(curve) for curve in curves.values())

    def x(i: int) -> float:
        return left + (width - left - 150) * (i / (n - 1))

    def y(value: float) -> float:
        return top + (height - top - 40) * (high - value) / (high - low or 1)

    font = 'font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {font}>']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for k in range(5):
        value = low + (high - low) * k / 4
        parts.append(f'<line x1="{left}" x2="{x(n - 1):.0f}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4f}</text>')
    ticks = range(0, n, max(1, n // 10))
    parts += [f'<text x="{x(i):.0f}" y="{height - 20}" text-anchor="middle">{i + 1}</text>' for i in ticks]
    parts.append(f'<text x="{x(n // 2):.0f}" y="{height - 4}" text-anchor="middle">evaluated merges</text>')
    for k, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[k]}" stroke-width="2"/>')
        parts.append(f'<text x="{x(n - 1) + 10:.0f}" y="{top + 16 + 18 * k}" fill="{colours[k]}">{name}</text>')
    out.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
