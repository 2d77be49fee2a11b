"""Builds a prepared dataset, with its page and its record, from a preparation recipe."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path

import datasets
import huggingface_hub
from rich.console import Console

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.config.reader import resolved
from scst.config.recipes import PrepareRecipe
from scst.data.files import write_text
from scst.data.preparation.data_report import DataReport
from scst.data.preparation.preparation import Preparation, peak_memory_mb
from scst.data.terminal import plain
from scst.report.data_page import report_html
from scst.training.run_folder.run_record import write_run_record

PAGE = "data_report.html"


def build_preparation(recipe: PrepareRecipe) -> Preparation:
    """The preparation that a recipe describes: its keys are the settings, by the same names."""
    return Preparation(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Preparation)})


def check_settings(recipe: PrepareRecipe) -> None:
    """Check the settings before an image is read.

    Raises:
        RecipeError: on a key that cannot be used.
        DataError: when the input folder contains the output folder or the reverse.
    """
    build_preparation(recipe).check()


def prepare_dataset(recipe: PrepareRecipe) -> None:
    """Prepare a dataset, and write ``data_report.html`` and ``run.json`` beside it."""
    quiet_libraries()
    started, console = time.time(), Console(width=None if os.isatty(1) else 140)

    def finish(folder: Path, report: DataReport, table: DocumentFrequencies) -> None:
        write_text(folder / PAGE, report_html(report, Path(recipe.output_dir).name))
        write_run_record(
            folder,
            stage="prepare",
            recipe=resolved(recipe),
            data_fingerprint=report.fingerprint,
            started=started,
            results={"peak_memory_mb": peak_memory_mb(), "document_frequencies": table.fingerprint},
        )

    build_preparation(recipe).run(finish, console)
    console.print(plain(f"see {Path(recipe.output_dir) / PAGE}"))


def quiet_libraries() -> None:
    """Silence progress bars and logs of libraries. Unlike ``build.prepare_libraries`` it needs no torch."""
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
