"""A curve of losses in characters, and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["in_characters", "in_svg"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def in_characters(values: Sequence[float], width: int, height: int) -> list[str]:
    """Lines of a bar chart from the top down, the means of `width` equal stretches; the scale is beside it.

    >>> print("\\n".join(in_characters([4.0, 3.0, 2.0, 1.0], 4, 2)))
     4.000 █▃
     1.000 ██▅▁
    """
    if not values:
        return []
    count = min(width, len(values))
    cuts = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [max(1, round((mean - low) / span * height * 8)) for mean in means]
    lines: list[str] = []
    for row in range(height - 1, -1, -1):
        bars = "".join(_EIGHTHS[min(max(level - row * 8, 0), 8)] for level in levels)
        label = f"{high:6.3f}" if row == height - 1 else f"{low:6.3f}" if row == 0 else " " * 6
        lines.append(f"{label} {bars}".rstrip())
    return lines


def in_svg(curves: dict[str, list[tuple[float, float]]], width: int = 720, height: int = 260) -> str:
    """Curves of (step, loss) by name, with axes; needs no script and no font of its own.

    >>> in_svg({"training": [(1, 2.0), (2, 1.0)]}).startswith("<svg")
    True
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return "<svg/>"
    left, bottom, top = 52, height - 28, 12
    x_high = max(x for x, _ in points) or 1
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_span = (y_high - y_low) or 1.0

    def place(x: float, y: float) -> str:
        return f"{left + x / x_high * (width - left - 16):.1f},{bottom - (y - y_low) / y_span * (bottom - top):.1f}"

    colours = ("#1f6f5c", "#b3541e", "#2b4c9b", "#7a3b8f")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="12" font-family="sans-serif">'
    ]
    for i in range(5):
        value = y_low + y_span * i / 4
        y = bottom - (bottom - top) * i / 4
        parts.append(f'<line x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:.2f}</text>')
    parts.append(f'<text x="{width - 16}" y="{height - 8}" text-anchor="end" fill="#555">step {x_high:g}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour = colours[i % len(colours)]
        line = " ".join(place(x, y) for x, y in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{left + 8 + 120 * i}" y="{height - 8}" fill="{colour}">{name}</text>')
    return "".join(parts) + "</svg>"
