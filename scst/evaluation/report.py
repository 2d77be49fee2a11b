"""A self-contained HTML report of an evaluation: no scripts, no outside files, readable on a phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from PIL import Image

from rewards.metrics import METRICS
from rewards.text import words
from scst.evaluation.metrics import MetricResult
from scst.page import html_page, thumbnail_uri

_WIDTH, _HEIGHT, _LONGEST = 600, 160, 30  # of the histogram, in SVG units; the last bar, in words


def report_html(
    *,
    title: str,
    subtitle: str,
    results: Mapping[str, MetricResult],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    image_ids: Sequence[str],
    image: Callable[[int], Image.Image],
    examples: int = 12,
) -> str:
    """The page as one string; every text in it is escaped.

    Args:
        title, subtitle: heading and the line below, e.g. model, prompt and decoding.
        results: metrics by name; examples are ranked by CIDEr-D, or else by the first of them.
        captions, references, image_ids: N each.
        image: picture of an index; called for the examples only.
        examples: how many of the best and of the worst captions are shown.
    """
    name, scores = _ranking(results, len(captions))
    order = sorted(range(len(captions)), key=lambda i: -scores[i])

    def cards(indices: Sequence[int]) -> str:
        shown = (_card(image(i), str(image_ids[i]), captions[i], references[i], scores[i]) for i in indices)
        return '<div class="cards">' + "\n".join(shown) + "</div>"

    sections = [
        ("Metrics", _metrics_table(results)),
        ("Words per caption", length_histogram(captions, references)),
        (f"Best captions by {name}", cards(order[:examples])),
        (f"Worst captions by {name}", cards(order[-examples:][::-1])),
    ]
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{content}" for heading, content in sections)
    return html_page(title, subtitle, body)


def _ranking(results: Mapping[str, MetricResult], size: int) -> tuple[str, list[float]]:
    """Title and values of what ranks examples: CIDEr-D, else the first metric with scores per caption."""
    found = [name for name in ("cider_d", *results) if name in results and results[name].per_caption]
    if not found:
        return "order", [0.0] * size
    return METRICS[found[0]].title, [value or 0.0 for value in results[found[0]].per_caption]


def _metrics_table(results: Mapping[str, MetricResult]) -> str:
    rows = (
        f'<tr><td>{escape(METRICS[name].title)}</td><td class="n">{result.value:.4f}</td>'
        f'<td class="n">{result.ci95[0]:.4f} to {result.ci95[1]:.4f}</td></tr>'
        f'<tr class="s"><td colspan="3"><code>{escape(result.signature)}</code></td></tr>'
        for name, result in results.items()
    )
    header = "<tr><th>metric</th><th>value</th><th>95 % interval</th></tr>"
    return f"<table>{header}{''.join(rows)}</table>"


def length_histogram(captions: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """Inline SVG: shares of captions (bars) and references (line) by number of words, from 0 to 30+."""
    ours = _length_shares(captions)
    theirs = _length_shares([text for group in references for text in group])
    lengths = range(max({*ours, *theirs}, default=0) + 1)
    top, step = max([*ours.values(), *theirs.values()], default=1.0), _WIDTH / len(lengths)
    bars = [_bar(length, step, ours[length], theirs[length], top) for length in lengths]
    points = (f"{(i + 0.5) * step:.1f},{_HEIGHT * (1 - theirs[i] / top):.1f}" for i in lengths)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 44}" role="img" aria-label="words per caption">'
        f"{''.join(bars)}"
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f'<text x="0" y="{_HEIGHT + 40}">bars: captions, line: references; top {100 * top:.0f} %</text></svg>'
    )


def _length_shares(captions: Sequence[str]) -> Counter[int]:
    counts = Counter(min(len(words(caption)), _LONGEST) for caption in captions)
    return Counter({length: count / len(captions) for length, count in counts.items()})


def _bar(length: int, step: float, ours: float, theirs: float, top: float) -> str:
    x, height = length * step, _HEIGHT * ours / top
    label = f"{length}+" if length == _LONGEST else str(length)
    tick = f'<text x="{x + step / 2:.1f}" y="{_HEIGHT + 18}" text-anchor="middle">{label}</text>'
    return (
        f'<rect x="{x + 1:.1f}" y="{_HEIGHT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}" '
        f'fill="var(--fill)"><title>{label} words: {100 * ours:.1f} % of captions, '
        f"{100 * theirs:.1f} % of references</title></rect>{tick if length % 2 == 0 else ''}"
    )


def _card(image: Image.Image, image_id: str, caption: str, references: Sequence[str], score: float) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(references))
    return (
        f'<div class="card"><img alt="{escape(image_id)}" src="{thumbnail_uri(image)}"><div>'
        f"<p>{escape(caption) or '<em>(empty)</em>'}</p>"
        f'<span class="soft">{score:.3f} · {escape(image_id)}</span>'
        f"<ul>{items}</ul></div></div>"
    )
