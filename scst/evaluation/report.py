"""A self-contained HTML report of an evaluation: no scripts, no outside files, readable on a phone."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from PIL import Image

from rewards.metrics import METRICS
from rewards.text import words
from scst.evaluation.metrics import MetricResult

_THUMBNAIL = 224  # pixels
_WIDTH, _HEIGHT, _LONGEST = 600, 160, 30  # of the histogram, in SVG units; the last bar, in words
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --soft: #888; --fill: #3a78c2; }}
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .5rem .3rem 0; border-bottom: 1px solid var(--line); }}
tr:has(+ .s) td {{ border: 0; padding-bottom: 0; }} .s td {{ padding-top: 0; }}
td.n {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
code, .soft {{ color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }}
.card {{ border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }}
.card img {{ width: 100%; aspect-ratio: 1; object-fit: cover; display: block; }}
.card div {{ padding: .6rem .8rem; }} .card p {{ margin: .2rem 0; font-weight: 600; }}
.card ul {{ margin: .4rem 0 0; padding-left: 1.1rem; color: var(--soft); font-size: .9rem; }}
svg {{ width: 100%; height: auto; }} svg text {{ font-size: 15px; fill: currentColor; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
{body}
</body>
</html>
"""


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
    return _PAGE.format(title=escape(title), subtitle=escape(subtitle), body=body)


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


def thumbnail_uri(image: Image.Image) -> str:
    """A small JPEG of the picture as a ``data:`` address."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
