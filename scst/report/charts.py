"""Charts of pages: histogram, bars and word cloud; no scripts, in the page's colours, legible on a phone."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

from scst.report.svg import BEFORE, FILL, few_ticks, inline_svg, new_chart

WIDTH, HEIGHT = 360, 190  # of histograms, in units of the SVG: pixels on a phone
STYLE = """
:root { --was: #9aa0a6; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; }
.key-figure { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
.key-figure b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 2rem; }
.two > * { min-width: 0; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
figure { margin: 0; } figcaption, .note { color: var(--soft); font-size: .9rem; }
figure svg { display: block; max-width: 34rem; }
figure.cloud svg { max-width: none; }
.bars { display: grid; grid-template-columns: fit-content(45%) 1fr max-content; gap: .3rem .6rem;
  align-items: center; }
.bars span { overflow-wrap: anywhere; line-height: 1.2; }
.bars i { display: block; height: .5rem; border-radius: .25rem; background: var(--fill); min-width: 1px; }
.bars i + i { margin-top: 2px; } .bars i.was { background: var(--was); }
.bars b { font-weight: 400; font-variant-numeric: tabular-nums; text-align: right; }
.key::before { content: ""; display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem;
  background: var(--fill); margin: 0 .35rem 0 0; } .key.was::before { background: var(--was); }
.key { margin-right: 1rem; white-space: nowrap; }
.scroll { overflow-x: auto; } .scroll td, .scroll th { padding-right: 1rem; }
.examples li { white-space: pre-wrap; margin: .4rem 0; } summary { cursor: pointer; margin: .6rem 0; }
.card s { opacity: .7; } .card b { font-weight: 600; }
ul.findings { padding-left: 1.2rem; } ul.findings li { margin: .35rem 0; }
"""


def key_figures(numbers: Sequence[tuple[str, str]]) -> str:
    """The most important numbers in large print, from pairs (number, what it is)."""
    cards = (
        f'<div class="key-figure"><b>{escape(number)}</b>{escape(what)}</div>' for number, what in numbers
    )
    return f'<div class="figures">{"".join(cards)}</div>'


def legend(before: str = "before", after: str = "after") -> str:
    """The colours of two series."""
    return f'<span class="key was">{escape(before)}</span><span class="key">{escape(after)}</span>'


def histogram(
    before: Mapping[int, int] | None,
    after: Mapping[int, int],
    *,
    last: int,
    label: str,
    names: tuple[str, str] = ("before", "after"),
) -> str:
    """Shares by number, before (grey, behind) and after (coloured); resting on a bar shows both shares.

    Args:
        before, after: number -> count; before None draws one series.
        last: the last bar holds this number and everything above it.
        label: what the horizontal axis counts.
        names: of the two series.
    """
    was, now = _shares(before or {}, last), _shares(after, last)
    numbers = [str(number) for number in range(last)] + [f"{last}+"]
    figure, axes = new_chart(WIDTH, HEIGHT)
    titles = {}
    for shares, width, colour in ((was, 0.9, BEFORE), (now, 0.55, FILL)):
        for number, bar in enumerate(axes.bar(range(last + 1), shares, width, color=colour, linewidth=0)):
            bar.set_gid(f"{colour}-{number}")
            told = f"{100 * was[number]:.1f} % {names[0]}, {100 * now[number]:.1f} % {names[1]}"
            titles[f"{colour}-{number}"] = f"{numbers[number]}: {told}"
    shown = sorted({*range(0, last, max(1, round(last / 6))), last})
    axes.set_xticks(shown, [numbers[number] for number in shown])
    axes.set_xlim(-0.6, last + 0.6)
    axes.set_ylim(0, max([*was, *now], default=0) * 1.05 or 1)
    axes.yaxis.set_major_locator(few_ticks(4))
    axes.yaxis.set_major_formatter(lambda share, place: f"{100 * share:g} %")
    axes.set_xlabel(label, parse_math=False)
    axes.grid(axis="y")
    key = "" if before is None else f"<figcaption>{legend(*names)}</figcaption>"
    return f"<figure>{inline_svg(figure, label, titles)}{key}</figure>"


def _shares(counts: Mapping[int, int], last: int) -> list[float]:
    total = sum(counts.values()) or 1
    shares = [counts.get(number, 0) / total for number in range(last)]
    return [*shares, sum(count for number, count in counts.items() if number >= last) / total]


def bars(rows: Sequence[tuple[str, float, float | None]], *, digits: int = 0) -> str:
    """Horizontal bars with a label and a number each.

    Args:
        rows: (label, after, before); before None draws one bar only.
        digits: after the decimal point.
    """
    top = max((max(after, before or 0) for _, after, before in rows), default=0) or 1
    lines = []
    for label, after, before in rows:
        was = "" if before is None else f'<i class="was" style="width:{100 * before / top:.1f}%"></i>'
        text = f"{after:,.{digits}f}" if before is None else f"{before:,.{digits}f} → {after:,.{digits}f}"
        lines.append(
            f'<span>{escape(label)}</span><div>{was}<i style="width:{100 * after / top:.1f}%"></i></div>'
            f"<b>{escape(text)}</b>"
        )
    return f'<div class="bars">{"".join(lines)}</div>'


@contextmanager
def _font_date() -> Iterator[None]:
    """Embedded fonts are dated; with one date for all, a page of the same data is the same page."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # read by fontTools
    try:
        yield
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


def word_cloud(frequencies: Mapping[str, int], *, seed: int = 0, words: int = 100) -> str | None:
    """Words by frequency as inline SVG; None where the package wordcloud is not installed."""
    if importlib.util.find_spec("wordcloud") is None or not frequencies:
        return None
    from wordcloud import WordCloud

    cloud = WordCloud(
        width=720,
        height=400,
        max_words=words,
        prefer_horizontal=1,
        relative_scaling=0.4,
        max_font_size=96,
        random_state=seed,
        color_func=lambda *_, **__: "var(--fill)",
    )
    with _font_date():
        svg = cloud.generate_from_frequencies(dict(frequencies)).to_svg(embed_font=True)
    svg = re.sub(r'<rect width="100%"[^>]*>(</rect>)?', "", svg)  # the background is the page's
    svg = svg.replace("<style>text{", "<style>.cloud text{")  # or it would set the font of every chart
    svg = re.sub(r'font-size="(\d+)" style="', r'style="font-size:\1px;', svg)
    svg = re.sub(r'<svg ([^>]*?)width="(\d+)" height="(\d+)"', r'<svg \1viewBox="0 0 \2 \3"', svg, count=1)
    return f'<figure class="cloud">{svg}</figure>'
