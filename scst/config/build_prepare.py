"""Builders of data preparation: cleaning steps, what scores captions, the folder it all goes to."""

from __future__ import annotations

import csv
import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rewards.scorers.document_frequencies import FILE_NAME, DocumentFrequencies
from scst.config.build_captions import build_agreement, build_clip, build_steps, corpus_scores
from scst.config.reader import resolved
from scst.data.files import write_json, write_text
from scst.data.preparation.data_report import DataReport, report_json, summary_rows
from scst.data.preparation.inspection import Inspected, inspect
from scst.data.preparation.prepared_dataset import (
    Prepared,
    form_to_write,
    most_captions,
    prepare,
    split_examples,
    write_examples,
)
from scst.data.preparation.statistics import agreement_sample, agreements
from scst.data.preparation.streams import RowStream
from scst.data.preparation.writers import make_writer
from scst.data.sources import check_layout, find_form
from scst.data.splits import parse_fractions
from scst.data.validate import refuse_bad
from scst.errors import DataError, RecipeError
from scst.report.data_page import report_html
from scst.training.run_record import RECORD_NAME, write_run_record

AGREEMENTS = ("bleu_4", "meteor", "cosine")
REPORT = "data_report.html"


def check_settings(recipe: Any) -> None:
    """Everything that can be wrong before an image is read.

    Raises:
        RecipeError: on a key that cannot be used. DataError: when input and output lie in each other.
    """
    build_steps(recipe, {})
    if recipe.split_fractions is not None:
        parse_fractions(recipe.split_fractions)
    if recipe.selection == "clipscore":
        build_clip(recipe)
    for name in ("agreement_images", "contact_sheet"):
        if getattr(recipe, name) < 0:
            raise RecipeError(f"{name}: expected 0 or more, got {getattr(recipe, name)}")
    unknown = [name for name in recipe.agreement if name not in AGREEMENTS]
    if unknown:
        raise RecipeError(f"agreement: unknown {unknown[0]!r}; known are {', '.join(AGREEMENTS)}")
    if recipe.categories and not Path(recipe.categories).is_file():
        raise RecipeError(f"categories: there is no file {recipe.categories!r}")
    output = Path(recipe.output_dir)
    form_to_write(recipe.layout, find_form(recipe.dataset), output, recipe.dataset)
    check_output(output, overwrite=recipe.overwrite)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds anything, unless it is an earlier preparation to be replaced.

    Raises:
        RecipeError: saying what was found.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    record = output / RECORD_NAME
    earlier = record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("stage") == "prepare"
    if not earlier:
        raise RecipeError(
            f"output_dir: {str(output)!r} exists and was not made by launch/prepare.py; give another folder"
        )
    if not overwrite:
        raise RecipeError(
            f"output_dir: {str(output)!r} holds an earlier prepared dataset; give another folder, or "
            "--overwrite true to replace it"
        )


def quiet_libraries() -> None:
    """Leave the screen to this project's progress, without importing torch for it."""
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def prepare_dataset(recipe: Any) -> None:
    """The whole preparation; the output folder appears when everything in it is complete."""
    started = time.time()
    quiet_libraries()
    console = Console(width=None if os.isatty(1) else 140)
    output = Path(recipe.output_dir)
    work = output.with_name(output.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        report = _prepare_into(work, recipe, console, started)
    except OSError as error:
        raise DataError(f"output_dir: {recipe.output_dir!r} cannot be written: {error}") from error
    finally:
        if not (work / RECORD_NAME).is_file():
            shutil.rmtree(work, ignore_errors=True)
    if output.exists():
        shutil.rmtree(output)
    work.rename(output)
    _print_summary(report, output, console, time.time() - started)


def _prepare_into(work: Path, recipe: Any, console: Console, started: float) -> DataReport:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        stream = RowStream(recipe.dataset, work / "hub")
        total = None if stream.form == "hub" else sum(check_layout(recipe.dataset)["splits"].values())

        def bar(title: str, count: int | None) -> Callable[[int], None]:
            task = progress.add_task(title, total=count)
            return lambda done: progress.advance(task, done)

        inspected = inspect(
            stream, thumbnails=recipe.contact_sheet, seed=recipe.seed, advance=bar("reading images", total)
        )
        if recipe.on_bad_example == "error":
            refuse_bad(inspected.bad)
        if not inspected.examples:
            raise DataError(f"{recipe.dataset}: no usable example is left; {len(inspected.bad)} are bad")
        synonyms: dict[str, str] = {}
        prepared = prepare(
            split_examples(
                inspected.examples, recipe.split_fractions, recipe.split_seed, whole=recipe.train_split
            ),
            train_split=recipe.train_split,
            all_splits=recipe.all_splits,
            steps=build_steps(recipe, synonyms),
            selection=recipe.selection,
            kept_captions=recipe.kept_captions,
            scores=corpus_scores(recipe, stream, lambda count: bar("CLIPScore", count)),
            seed=recipe.seed,
            drop_repeated_images=recipe.repeated_images == "drop",
        )
        report = _build_report(recipe, inspected, prepared, synonyms, bar("agreement", len(recipe.agreement)))
        form = form_to_write(recipe.layout, stream.form, work, recipe.dataset)
        if form != "none":
            writer = make_writer(form, work, inspected.features, most_captions(prepared.after))
            write_examples(stream, prepared.after, writer, bar("writing", len(inspected.examples)))
    shutil.rmtree(work / "hub", ignore_errors=True)
    _write_results(work, recipe, report, started)
    return report


def _build_report(
    recipe: Any,
    inspected: Inspected,
    prepared: Prepared,
    synonyms: dict[str, str],
    advance: Callable[[int], None],
) -> DataReport:
    scorers, missing = build_agreement(recipe)
    sample = agreement_sample(prepared.before, recipe.agreement_images, recipe.seed)
    return DataReport(
        dataset=recipe.dataset,
        train_split=recipe.train_split,
        inspected=inspected,
        prepared=prepared,
        synonyms=synonyms,
        agreement=agreements(sample, scorers, lambda name: advance(1)) if sample else {},
        not_measured=missing,
        categories=read_categories(recipe.categories, recipe.dataset),
    )


def read_categories(file: str | None, dataset: str) -> dict[str, str]:
    """Image id -> category from a CSV file, by default ``index.csv`` in the dataset's folder; {} without one.

    Raises:
        DataError: a named file lacks a column.
    """
    path = Path(file or Path(dataset).expanduser() / "index.csv")
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    key = next((name for name in ("image_id", "image") if rows and name in rows[0]), None)
    if key is None or "category" not in rows[0]:
        if file is None:
            return {}
        raise DataError(
            f"{path}: expected the columns image_id (or image) and category; found {list(rows[:1])}"
        )
    return {Path(row[key]).stem if key == "image" else row[key]: row["category"] for row in rows}


def _write_results(work: Path, recipe: Any, report: DataReport, started: float) -> None:
    examples = [e for e in report.prepared.after if e.split == recipe.train_split]
    table = DocumentFrequencies.from_references(
        [e.references for e in examples], eos=recipe.eos, split=recipe.train_split
    )
    table.save(work / FILE_NAME)
    write_text(work / REPORT, report_html(report, Path(recipe.output_dir).name))
    write_json(work / "data_report.json", report_json(report))
    write_run_record(
        work,
        stage="prepare",
        recipe=resolved(recipe),
        data_fingerprint=report.fingerprint,
        started=started,
        results={"peak_memory_mb": peak_memory_mb(), "document_frequencies": table.fingerprint},
    )


def peak_memory_mb() -> int:
    """The most memory this process has had at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _print_summary(report: DataReport, output: Path, console: Console, seconds: float) -> None:
    table = Table("", "before", "after", title=f"{report.dataset}: {report.train_split}")
    for name, before, after in summary_rows(report):
        table.add_row(name, before, after)
    console.print(table)
    for step in report.prepared.steps:
        console.print(
            f"{step.name}: {step.changed:,} captions changed, {step.dropped:,} left out, "
            f"{step.captions:,} captions and {step.vocabulary:,} distinct words left"
        )
    for name, reason in report.not_measured.items():
        console.print(f"agreement by {name} was not measured: {reason}")
    console.print(
        f"{output}: {len(report.prepared.after):,} images in {seconds:.0f} s, at most {peak_memory_mb():,} MB"
        f" of memory; see {output / REPORT}"
    )
