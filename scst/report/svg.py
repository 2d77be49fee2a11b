"""From a matplotlib figure to inline SVG: small, the same for the same data, readable in light and dark.

matplotlib writes fixed colours. A figure is therefore drawn in the colours of :data:`COLOURS`, and each of
them is replaced in the finished SVG by the CSS colour it stands for, so that the page's style sheet decides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

TEXT, FILL, BEFORE, SECOND, THIRD = "#010101", "#010102", "#010103", "#010104", "#010105"
COLOURS = {
    TEXT: "currentColor",
    FILL: "var(--fill)",
    BEFORE: "var(--was)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
}
"""Colour in the figure -> colour on the page."""
FONT_SIZE = 11  # units of the viewBox
_NUMBER = re.compile(r"-?\d+\.\d+")
_SETTINGS: Any = {  # Any: matplotlib types the names of settings as literals
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "scst",  # or the ids of clip paths are random
    "font.size": FONT_SIZE,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.limits": (-3, 6),
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": TEXT,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
}


def new_chart(width: int, height: int) -> tuple[Figure, Axes]:
    """An empty figure with axes in the page's style.

    Args:
        width, height: in units of the SVG's viewBox, which are pixels where the SVG has its natural size.
    """
    import matplotlib  # half a second, and only pages need it
    from matplotlib.figure import Figure

    # No pyplot: it would keep every figure alive and pick a backend of the screen.
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
    for background in (figure.patch, axes.patch):
        background.set_visible(False)  # the page's shines through, light or dark
    return figure, axes


def few_ticks(count: int, *, integer: bool = False) -> MaxNLocator:
    """At most ``count`` intervals between round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=integer)


def inline_svg(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as an ``<svg>`` element without ids, dates or fixed size.

    Args:
        figure: of :func:`new_chart`.
        label: what a screen reader says.
        titles: gid of an artist -> text that appears when the pointer rests on it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return _tidy(buffer.getvalue(), label, titles or {})


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _tidy(svg: str, label: str, titles: Mapping[str, str]) -> str:
    def group(match: re.Match[str]) -> str:
        title = titles.get(match[1])
        return "<g>" if title is None else f"<g><title>{escape(title)}</title>"

    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    # Several charts share a page: ids of groups would occur twice; those of clip paths and markers are hashes
    svg = re.sub(r'<g id="([^"]*)">', group, svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)  # the page's font
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'\b(?:d|x|y|width|height)="[^"]*"', lambda match: _NUMBER.sub(_rounded, match[0]), svg)
    for colour, css in COLOURS.items():
        svg = svg.replace(colour, css)
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", body)).strip()
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}" stroke-linejoin="round">'
    return head + body
