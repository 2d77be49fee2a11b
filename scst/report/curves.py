"""Learning curves as inline SVG: no scripts, in the page's colours, two beside each other on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 220, 90  # SVG units
STYLE = """
:root { --second: #d9772b; --third: #2f9e6e; }
.plots { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.plots > * { min-width: 0; overflow-wrap: anywhere; }
.plots b { font-size: .9rem; } .plots svg text { font-size: 13px; }
.plots .key { display: block; white-space: normal; }
.key.second::before { background: var(--second); } .key.third::before { background: var(--third); }
"""
_LINE_STYLES = (
    ("", "var(--fill)", ""),
    (" second", "var(--second)", ' stroke-dasharray="6 3"'),
    (" third", "var(--third)", ' stroke-dasharray="2 3"'),
)
_FEW_POINTS = 12


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, horizontal: str = "step"
) -> str:
    """Up to three lines over a common axis, with the range of both axes and a legend.

    Args:
        series: name -> points (x, y), finite, x ascending; few points are marked one by one.
        title: above the chart.
        horizontal: what x counts.
    """
    points = [point for values in series.values() for point in values]
    if not points:
        return ""
    (left, right), (low, high) = ((min(each), max(each)) for each in zip(*points, strict=True))
    width, height = (right - left) or 1, (high - low) or 1
    styles = _LINE_STYLES[: len(series)]

    def place(x: float, y: float) -> tuple[float, float]:
        return WIDTH * (x - left) / width, HEIGHT * (1 - (y - low) / height)

    drawn = "".join(
        _line([place(*point) for point in values], colour, dash)
        for values, (_, colour, dash) in zip(series.values(), styles, strict=True)
    )
    keys = "".join(
        f'<span class="key{style}">{escape(name)} ({_short(values[-1][1])})</span>'
        for (name, values), (style, _, _) in zip(series.items(), styles, strict=True)
    )
    return (
        f"<figure><b>{escape(title)}</b>"
        f'<svg viewBox="-4 -18 {WIDTH + 8} {HEIGHT + 38}" role="img" aria-label="{escape(title)}">'
        f'<path d="M0 0H{WIDTH}M0 {HEIGHT}H{WIDTH}" stroke="currentColor" opacity=".3"/>'
        f"{drawn}{_axes(left, right, low, high, horizontal)}</svg><figcaption>{keys}</figcaption></figure>"
    )


def _axes(left: float, right: float, low: float, high: float, horizontal: str) -> str:
    """The ends of both axes."""
    return (
        f'<text x="0" y="-5">{_short(high)}</text><text x="0" y="{HEIGHT - 5}">{_short(low)}</text>'
        f'<text x="0" y="{HEIGHT + 15}">{_short(left)}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 15}" text-anchor="end">{escape(horizontal)} {_short(right)}</text>'
    )


def _line(points: Sequence[tuple[float, float]], colour: str, dash: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        for x, y in points
        if len(points) <= _FEW_POINTS
    )
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>{marks}'


def _short(value: float) -> str:
    """Three digits, whole numbers in full."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
