"""``matrix.html``: the tables and figures of a matrix in one file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scst.experiments import tables
from scst.experiments.figures import DrawnFigure
from scst.experiments.results import Result, Robustness, Row, metric_names
from scst.report.page import html_page

STYLE = """
.scroll { overflow-x: auto; margin: .5rem 0 1rem; } .scroll table { width: max-content; min-width: 100%; }
.scroll td, .scroll th { padding-right: 1rem; vertical-align: top; }
.scroll td:first-child, .scroll th:first-child { max-width: 14rem; overflow-wrap: anywhere; }
.scroll td:nth-child(2) { max-width: 12rem; }
figure { margin: 1.5rem 0; } figure img { width: 100%; max-width: 44rem; display: block; background: #fff;
  border-radius: .3rem; } figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
.bad { color: #c33; }
"""


def matrix_html(
    title: str,
    results: Sequence[Result],
    rows: Sequence[Row],
    robustness: Sequence[Robustness],
    metric: str | None,
    trainings: Sequence[Mapping[str, Any]],
    figures: Sequence[DrawnFigure],
    folder: Path,
) -> str:
    """The page; tables scroll inside themselves, so that a phone shows it without scrolling sideways.

    Args:
        title: of the page.
        results, rows, robustness: what :mod:`scst.experiments.results` has found.
        metric: that robustness is about.
        trainings: lines of ``trainings_table``.
        figures: file names in ``folder`` and captions; embedded.
    """
    metrics = metric_names(results)
    complete = sum(result.state == "complete" for result in results)
    parts = [_table(*tables.grid(rows, metrics))]
    parts += [f'<p class="soft">{escape(tables.how_to_read(rows))}.</p>', _failures(results)]
    if metric and robustness:
        parts += [f"<h2>Prompt robustness ({escape(tables.title_of(metric))})</h2>"]
        parts += [_table(tables.ROBUSTNESS_HEADING, tables.robustness_lines(robustness))]
    if figures:
        parts += ["<h2>Figures</h2>", *(_figure(folder / name, caption) for name, caption in figures)]
    if trainings:
        head = list(trainings[0])
        parts += ["<h2>Trainings</h2>", _table(head, [[str(t[name]) for name in head] for t in trainings])]
    parts += ["<h2>Signatures</h2>", _signatures(rows, metrics)]
    subtitle = f"{complete} of {len(results)} cells complete"
    return html_page(title, subtitle, "\n".join(parts), style=STYLE)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><tr>{top}</tr>{body}</table></div>'


def _failures(results: Sequence[Result]) -> str:
    lines = [
        f"<li>{escape(tables.label(r))}: {escape(r.error or 'not run yet')}</li>"
        for r in results
        if r.state != "complete"
    ]
    return f'<h2 class="bad">Without result</h2><ul>{"".join(lines)}</ul>' if lines else ""


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _signatures(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    lines = []
    for name, found in tables.signatures(rows, metrics).items():
        note = "" if len(found) == 1 else " <b>differ: these values must not be compared</b>"
        codes = "<br>".join(f"<code>{escape(text)}</code>" for text in found)
        lines.append(f"<tr><td>{escape(tables.title_of(name))}{note}</td><td>{codes}</td></tr>")
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'
