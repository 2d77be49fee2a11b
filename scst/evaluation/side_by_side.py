"""Any number of finished evaluations side by side on the screen: their metrics, and some of their captions.

Nothing is tested here; the paired test of two evaluations is
:func:`scst.evaluation.score_files.compare_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from scst.data.terminal import PlainTable, plain
from scst.errors import DataError
from scst.files.json_reader import as_object, parse_json, read_json_object
from scst.files.reading import read_text
from scst.metrics.suite import METRICS


def comparison_table(runs: Mapping[str, str | Path], *, title: str = "") -> PlainTable:
    """Metrics of several runs with their 95 % intervals, a column each; a changed signature is marked.

    Args:
        runs: output folder of ``evaluate`` by the name of its column, e.g. ``base``, ``sft``, ``scst``.
        title: of the table.

    Raises:
        DataError: a folder without ``metrics.json``.
    """
    metrics = {name: read_metrics(folder) for name, folder in runs.items()}
    table = PlainTable("metric", *runs, title=title)
    for key in dict.fromkeys(key for run in metrics.values() for key in run):
        signatures = {run[key]["signature"] for run in metrics.values() if key in run}
        comparable = len(signatures) == 1
        label = METRICS[key].title if key in METRICS else key
        mark = "" if comparable else " (!)"
        table.add_row(label + mark, *(_metric_cell(run.get(key)) for run in metrics.values()))
        if not comparable:
            table.caption = "(!) signatures differ: these values must not be compared"
    return table


def _metric_cell(entry: Mapping[str, Any] | None) -> Text:
    if entry is None:
        return plain("-")
    low, high = entry["ci95"]
    return Text.assemble(f"{entry['value']:.3f}\n", (f"{low:.3f} - {high:.3f}", "dim"))


def captions_table(runs: Mapping[str, str | Path], *, images: int = 4, title: str = "") -> PlainTable:
    """Captions of the same images by several runs, with one of their references.

    Args:
        runs: as in :func:`comparison_table`.
        images: how many, spread evenly over those that every run captioned.
        title: of the table.
    """
    predictions = {name: read_predictions(folder) for name, folder in runs.items()}
    rows = {name: {row["image_id"]: row for row in run} for name, run in predictions.items()}
    first = next(iter(rows.values()))
    shared = [image_id for image_id in first if all(image_id in run for run in rows.values())]
    table = PlainTable("image", "by", "caption", title=title)
    for image_id in shared[:: max(len(shared) // images, 1)][:images]:
        table.add_section()
        reference = first[image_id]["references"][0]
        table.add_row(str(image_id), plain("reference", "dim"), plain(reference, "dim"))
        for name, run in rows.items():
            table.add_row("", name, run[image_id]["caption"] or "(empty)")
    return table


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """``metrics.json`` of an output folder."""
    return read_json_object(_existing(folder, "metrics.json"))


def read_predictions(folder: str | Path) -> list[dict[str, Any]]:
    """``predictions.jsonl`` of an output folder."""
    path = _existing(folder, "predictions.jsonl")
    lines = read_text(path).splitlines()
    return [as_object(parse_json(line, str(path)), str(path)) for line in lines if line.strip()]


def _existing(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected the output folder of a finished evaluation")
    return path
