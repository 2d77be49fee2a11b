"""Lines over a common axis: learning curves, and the deletion and insertion curves of an explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from scst.report.svg import FILL, SECOND, THIRD, few_ticks, inline_svg, new_chart

WIDTH, HEIGHT = 176, 112  # units of the SVG, about a pixel each: two charts stand side by side on a phone
STYLE = """
:root { --second: #d9772b; --third: #2f9e6e; }
.plots { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.plots > * { min-width: 0; overflow-wrap: anywhere; }
.plots b { font-size: .9rem; }
.plots .key { display: block; white-space: normal; }
.key.second::before { background: var(--second); } .key.third::before { background: var(--third); }
"""
_STYLES = (("", FILL, "-"), (" second", SECOND, (0, (5, 2))), (" third", THIRD, (0, (1, 1.5))))
"""CSS class of the key, colour and dashes of each line."""
_FEW_POINTS = 12


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    horizontal: str = "step",
    from_zero: bool = False,
    last_values: bool = True,
) -> str:
    """A ``<figure>`` with up to three lines, a title and a key; "" without points.

    Args:
        series: name -> points (x, y), finite, x ascending; few points are marked one by one.
        title: above the chart.
        horizontal: what x counts.
        from_zero: the vertical axis begins at 0.
        last_values: the key tells the last value of each line.
    """
    if not any(series.values()):
        return ""
    figure, axes = new_chart(WIDTH, HEIGHT)
    keys = []
    for (name, points), (style, colour, dashes) in zip(series.items(), _STYLES, strict=False):
        x, y = zip(*points, strict=True)
        marker = "o" if len(points) <= _FEW_POINTS else None
        axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3.5)
        value = f" ({_short(y[-1])})" if last_values else ""
        keys.append(f'<span class="key{style}">{escape(name)}{value}</span>')
    whole = all(x == int(x) for points in series.values() for x, _ in points)
    axes.xaxis.set_major_locator(few_ticks(3, integer=whole))
    axes.yaxis.set_major_locator(few_ticks(3))
    axes.set_ylim(bottom=0 if from_zero else None)
    axes.grid(axis="y")
    axes.set_xlabel(horizontal, parse_math=False)
    return (
        f"<figure><b>{escape(title)}</b>{inline_svg(figure, title)}<figcaption>{''.join(keys)}</figcaption>"
        "</figure>"
    )


def _short(value: float) -> str:
    """Three digits, whole numbers in full."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
