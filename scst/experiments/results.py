"""What a matrix has measured: values per cell, means over seeds, and how far each prompt falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scst.evaluation.side_by_side import read_metrics
from scst.experiments.matrix_plan import Cell, Plan
from scst.files.json_reader import read_json_object
from scst.metrics.suite import METRICS
from scst.training.run_folder.run_record import RECORD_NAME


@dataclass(frozen=True)
class Value:
    """A metric of one row.

    Attributes:
        value: with one seed the value itself, else the mean over seeds.
        low, high: the 95 % bootstrap interval over images with one seed; else mean minus and plus the
            standard deviation over seeds.
        deviation: that deviation; None with one seed.
        seeds: how many.
        signature: of all of them; None where they differ.
    """

    value: float
    low: float | None
    high: float | None
    deviation: float | None
    seeds: int
    signature: str | None


@dataclass(frozen=True)
class Result:
    """One cell: its keys, and its metrics or its error.

    Attributes:
        metrics: as in ``metrics.json``; empty when it is not there.
        error: why not; None while it was not run.
    """

    cell: Cell
    metrics: Mapping[str, Mapping[str, Any]]
    error: str | None

    @property
    def state(self) -> str:
        """complete, failed or missing."""
        return "complete" if self.metrics else "failed" if self.error else "missing"

    def keys(self) -> dict[str, Any]:
        """What identifies the cell in a table."""
        cell = self.cell
        return {
            "model": cell.model.name,
            **cell.model.varied,
            "prompt": cell.prompt,
            "decoding": cell.decoding,
            "max_new_tokens": cell.max_new_tokens,
            "seed": cell.seed,
        }


@dataclass(frozen=True)
class Row:
    """The cells that differ only in their seed."""

    results: tuple[Result, ...]
    values: Mapping[str, Value] = field(hash=False)

    @property
    def cell(self) -> Cell:
        """The first of them."""
        return self.results[0].cell

    @property
    def setting(self) -> tuple[str, str, int]:
        """Prompt, decoding and length limit."""
        return self.cell.prompt, self.cell.decoding, self.cell.max_new_tokens


@dataclass(frozen=True)
class Robustness:
    """How one model answers other prompts than its own.

    Attributes:
        model, decoding, max_new_tokens: of the row.
        prompt: the one that the others are compared with.
        was_trained_on: whether the model was.
        unseen: prompts it was not trained on.
        ratios: prompt -> value over that of ``prompt``.
    """

    model: str
    decoding: str
    max_new_tokens: int
    prompt: str
    was_trained_on: bool
    unseen: tuple[str, ...]
    ratios: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The prompt with the smallest ratio."""
        return min(self.ratios, key=self.ratios.__getitem__)


def collect(plan: Plan, errors: Mapping[Path, str]) -> list[Result]:
    """Read the results of all cells from their folders.

    Args:
        plan: of the matrix.
        errors: folder of a failed run -> message.
    """
    results = []
    for cell in plan.cells:
        there = read_metrics(cell.run.folder) if cell.run.is_complete else {}
        results.append(Result(cell, there, None if there else errors.get(cell.run.folder)))
    return results


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Results grouped over seeds, in their order."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        cell = result.cell
        groups.setdefault((cell.model.name, cell.prompt, cell.decoding, cell.max_new_tokens), []).append(
            result
        )
    return [Row(tuple(group), _values(group)) for group in groups.values()]


def metric_names(results: Sequence[Result]) -> list[str]:
    """Names of all metrics that any cell has, in order of appearance."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def _values(results: Sequence[Result]) -> dict[str, Value]:
    values = {}
    for name in metric_names(results):
        entries = [r.metrics[name] for r in results if name in r.metrics]
        entries = [entry for entry in entries if entry["value"] is not None]
        if entries:
            values[name] = _value(entries)
    return values


def _value(entries: Sequence[Mapping[str, Any]]) -> Value:
    numbers = [entry["value"] for entry in entries]
    signatures = {entry["signature"] for entry in entries}
    signature = signatures.pop() if len(signatures) == 1 else None
    centre = mean(numbers)
    if len(numbers) == 1:
        low, high = entries[0]["ci95"]
        return Value(centre, low, high, None, 1, signature)
    deviation = stdev(numbers)  # of a sample (n - 1): the seeds stand for all that could have been drawn
    return Value(centre, centre - deviation, centre + deviation, deviation, len(numbers), signature)


def main_metric_of(results: Sequence[Result], wanted: str) -> str | None:
    """The wanted metric if it was computed, else the first computed one where higher is better."""
    names = metric_names(results)
    better = [name for name in names if name in METRICS and METRICS[name].direction > 0]
    return wanted if wanted in names else next(iter([*better, *names]), None)


def robustness_of(rows: Sequence[Row], metric: str) -> list[Robustness]:
    """Ratios of the metric under every prompt to that under the training prompt, per model and decoding.

    The prompt to compare with is the first of those evaluated that the model was trained on; a model that was
    trained on none of them is compared with the first one. Models with one prompt, or whose value there is 0,
    are left out.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if metric in row.values:
            groups.setdefault((row.cell.model.name, *row.setting[1:]), []).append(row)
    found = []
    for (model, decoding, limit), group in groups.items():
        trained_on = group[0].cell.trained_on
        values = {row.cell.prompt: row.values[metric].value for row in group}
        seen = [prompt for prompt in trained_on if prompt in values]
        prompt = (seen or list(values))[0]
        if len(values) > 1 and values[prompt] > 0:
            unseen = tuple(other for other in values if other not in trained_on)
            ratios = {other: value / values[prompt] for other, value in values.items()}
            found.append(Robustness(model, decoding, limit, prompt, bool(seen), unseen, ratios))
    return found


def trainings_table(plan: Plan) -> list[dict[str, Any]]:
    """Stage, folder, steps and seconds of every complete training."""
    found = []
    for run in plan.trainings:
        if run.is_complete:
            record = read_json_object(run.folder / RECORD_NAME)
            found.append(
                {
                    "stage": run.stage,
                    "folder": run.place,
                    "steps": record["steps"],
                    "train_seconds": record["train_seconds"],
                    "best_metric": record.get("best_metric"),
                }
            )
    return found
