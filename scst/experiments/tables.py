"""The tables of a matrix: Markdown for people, CSV for spreadsheets, JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from scst.data.terminal import PlainTable, plain
from scst.data.visible import visible
from scst.experiments.results import Result, Robustness, Row, Value, metric_names
from scst.metrics.suite import METRICS

CSV_TAIL = ["state", "metric", "value", "ci95_low", "ci95_high", "signature", "folder", "error"]


def title_of(metric: str) -> str:
    """The usual spelling of a metric's name."""
    return METRICS[metric].title if metric in METRICS else metric


def how_to_read(rows: Sequence[Row]) -> str:
    """Explain the numbers of a value, and name the settings that all rows share."""
    counts = {value.seeds for row in rows for value in row.values.values()}
    texts = []
    if counts & {1}:
        texts.append("[low, high]: 95 % bootstrap interval over images, one seed")
    if counts - {1}:
        texts.append("mean ± standard deviation over seeds, their number in brackets")
    everywhere = {name: texts[0] for name, texts in _settings(rows).items() if len(set(texts)) == 1}
    if texts and everywhere:
        texts.append("everywhere " + ", ".join(f"{name} {text}" for name, text in everywhere.items()))
    return "; ".join(texts) or "no cell is complete yet"


def cell_text(value: Value | None) -> str:
    """E.g. ``1.234 [1.10, 1.35]``, over seeds ``1.234 ± 0.020 (3)``."""
    if value is None:
        return "-"
    if value.deviation is None:
        return f"{value.value:.3f} [{_bound(value.low)}, {_bound(value.high)}]"
    return f"{value.value:.3f} ± {value.deviation:.3f} ({value.seeds})"


def _bound(bound: float | None) -> str:
    return "-" if bound is None else f"{bound:.3f}"


def grid(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of the table over seeds: models, the settings in which rows differ, metrics."""
    columns = {"model": [row.cell.model.name for row in rows]}
    columns |= {name: texts for name, texts in _settings(rows).items() if len(set(texts)) > 1}
    columns |= {title_of(name): [cell_text(row.values.get(name)) for row in rows] for name in metrics}
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _settings(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {
        "prompt": [row.cell.prompt or "(none)" for row in rows],
        "decoding": [row.cell.decoding for row in rows],
        "tokens": [str(row.cell.max_new_tokens) for row in rows],
    }


def signatures(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, list[str]]:
    """Every metric's signatures: more than one means that its values must not be compared."""
    found = {}
    for name in metrics:
        here = {r.metrics[name]["signature"] for row in rows for r in row.results if name in r.metrics}
        found[name] = sorted(here)
    return found


def decoding_texts(robustness: Sequence[Robustness]) -> list[str]:
    """The decoding of every entry, with its length limit where there are several."""
    settings = {(entry.decoding, entry.max_new_tokens) for entry in robustness}
    is_enough = len(settings) == len({decoding for decoding, _ in settings})
    return [e.decoding if is_enough else f"{e.decoding}, {e.max_new_tokens} tokens" for e in robustness]


def robustness_lines(robustness: Sequence[Robustness]) -> list[list[str]]:
    """Lines of the robustness table; see ``ROBUSTNESS_HEADING``."""
    return [
        [
            entry.model,
            decoding,
            (entry.prompt or "(none)") + ("" if entry.was_trained_on else " (not trained on)"),
            entry.worst or "(none)",
            f"{entry.ratios[entry.worst]:.3f}",
            f"{min(entry.ratios[p] for p in entry.unseen):.3f}" if entry.unseen else "-",
        ]
        for entry, decoding in zip(robustness, decoding_texts(robustness), strict=True)
    ]


ROBUSTNESS_HEADING = ["model", "decoding", "compared with", "worst prompt", "worst / it", "worst unseen / it"]


def markdown(
    title: str,
    results: Sequence[Result],
    rows: Sequence[Row],
    robustness: Sequence[Robustness],
    metric: str | None,
) -> str:
    """``matrix.md``: the table, robustness, signatures, what failed."""
    metrics = metric_names(results)
    parts = [
        f"# {_md(title)}",
        _md(how_to_read(rows)) + ".",
        _md_table(*grid(rows, metrics)),
    ]
    if metric and robustness:
        parts += [f"## Prompt robustness ({_md(title_of(metric))})"]
        parts += [_md_table(ROBUSTNESS_HEADING, robustness_lines(robustness))]
    parts += ["## Signatures", *_signature_notes(rows, metrics)]
    failed = [r for r in results if r.state != "complete"]
    if failed:
        notes = [_md(f"- {label(r)}: {r.error or 'not run yet'}") for r in failed]
        parts += [f"## Without result ({len(failed)} of {len(results)} cells)", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _signature_notes(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    notes = []
    for name, found in signatures(rows, metrics).items():
        warning = "" if len(found) == 1 else " (they differ: values must not be compared)"
        notes.append(f"- {_md(title_of(name))}{warning}: " + "; ".join(f"`{_md(text)}`" for text in found))
    return ["\n".join(notes)] if notes else []


def label(result: Result) -> str:
    """A cell in words."""
    cell = result.cell
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    return f"{cell.model.name}, “{cell.prompt}”, {cell.decoding}, {cell.max_new_tokens} tokens{seed}"


def _md_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_md(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, lines)])


def _md(text: str) -> str:
    """Text in one line of Markdown: no HTML, no link or image, no end of a code span."""
    text = visible(text.replace("\n", " ")).replace("](", "]&#40;")
    return text.replace("<", "&lt;").replace("`", "&#96;")


_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""How a cell begins that a spreadsheet takes for a formula (OWASP, "CSV Injection")."""


def _csv_cell(value: object) -> object:
    """Text that a spreadsheet would run begins with an apostrophe; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_text(results: Sequence[Result]) -> str:
    """``matrix.csv``: a line per cell and metric, numbers unrounded; a cell without any has one line.

    Text is quoted, so that no separator of another country's spreadsheet splits it, and never a formula.
    """
    keys = list(dict.fromkeys(name for result in results for name in result.keys()))  # noqa: SIM118
    buffer = io.StringIO()
    heads = [*keys, *CSV_TAIL]
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(map(_csv_cell, heads))
    for result in results:
        common = result.keys() | {"state": result.state, "error": result.error}
        common |= {"folder": result.cell.run.place}
        for name, entry in (result.metrics or {"": {}}).items():
            low, high = entry.get("ci95", (None, None))
            numbers = {"value": entry.get("value"), "ci95_low": low, "ci95_high": high}
            line = common | {"metric": name or None, "signature": entry.get("signature")} | numbers
            writer.writerow(_csv_cell(line.get(head)) for head in heads)
    return buffer.getvalue()


def json_content(
    results: Sequence[Result],
    rows: Sequence[Row],
    robustness: Sequence[Robustness],
    metric: str | None,
    trainings: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """``matrix.json``: all cells, means over seeds, robustness, trainings."""
    return {
        "reading": how_to_read(rows),
        "cells": [
            {
                "keys": result.keys(),
                "trained_on": list(result.cell.trained_on),
                "state": result.state,
                "error": result.error,
                "folder": result.cell.run.place,
                "metrics": dict(result.metrics),
            }
            for result in results
        ],
        "rows": [
            {
                "keys": {k: v for k, v in row.results[0].keys().items() if k != "seed"},
                "seeds": [result.cell.seed for result in row.results if result.metrics],
                "metrics": {name: vars(value) for name, value in row.values.items()},
            }
            for row in rows
        ],
        "robustness": {
            "metric": metric,
            "models": [vars(entry) | {"worst": entry.worst} for entry in robustness],
        },
        "trainings": list(trainings),
    }


def rich_table(title: str, rows: Sequence[Row], metrics: Sequence[str]) -> PlainTable:
    """The table on the screen."""
    head, lines = grid(rows, metrics)
    table = PlainTable(*head, title=title)
    for line in lines:
        table.add_row(*(text.replace(" [", "\n[").replace(" ±", "\n±") for text in line))
    table.caption = plain(how_to_read(rows), "table.caption")
    return table
