"""Pieces that sections of the report share: pictures, cards, cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import Any

from scst.data.thumbnails import thumbnail_uri

CARD, SMALL = 176, 88  # pixels of a picture on a card, in a table
STYLE = """
nav a { display: inline-block; margin: 0 .8rem .3rem 0; } section { scroll-margin-top: 1rem; }
.scroll td, .scroll th { vertical-align: top; } .wide { min-width: 46rem; }
td img { width: 4.5rem; height: 4.5rem; object-fit: cover; border-radius: .35rem; display: block; }
mark { background: color-mix(in srgb, #ff6000 35%, transparent); color: inherit; border-radius: .2rem; }
.card .was { color: var(--soft); font-weight: 400; } .card { min-width: 0; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); gap: 1rem; margin: 1rem 0; }
.pair img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .4rem; }
.pair table td:first-child { overflow-wrap: anywhere; }
.figures + .scroll { margin-top: 1rem; }
.pair td { vertical-align: top; padding-top: .15rem; padding-bottom: .15rem; }
"""


class Pictures:
    """Thumbnails of an evaluation's images, each read when it is shown first.

    Args:
        images: N pictures, read one by one.
        image_ids: N ids.
    """

    def __init__(self, images: Sequence[Any], image_ids: Sequence[str]):
        self._images, self._ids = images, image_ids
        self._uri = lru_cache(maxsize=None)(self._thumbnail)

    def tag(self, index: int, side: int = CARD) -> str:
        """The ``<img>`` of a picture."""
        return f'<img alt="{escape(str(self._ids[index]))}" src="{self._uri(index, side)}">'

    def _thumbnail(self, index: int, side: int) -> str:
        return thumbnail_uri(self._images[index], side)


def cards(contents: Sequence[str]) -> str:
    """A grid of cards."""
    return f'<div class="cards">{"".join(contents)}</div>'


def card(picture: str, captions: str, score: str, references: Sequence[str]) -> str:
    """A picture with HTML of its caption and score, and its human captions."""
    items = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(references))
    return (
        f'<div class="card">{picture}<div>{captions}<span class="soft">{score}</span>'
        f"<ul>{items}</ul></div></div>"
    )


def shown(caption: str) -> str:
    """A caption as HTML."""
    return escape(caption) or "<em>(empty)</em>"


def table(head: Sequence[str], rows: Sequence[str], *, wide: bool = False) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        head: texts. rows: ``<tr>`` elements.
        wide: more than a phone shows.
    """
    header = "".join(f"<th>{escape(text)}</th>" for text in head)
    kind = ' class="wide"' if wide else ""
    return f'<div class="scroll"><table{kind}><tr>{header}</tr>{"".join(rows)}</table></div>'


def number_cell(text: str) -> str:
    """A cell of figures."""
    return f'<td class="n">{escape(text)}</td>'
