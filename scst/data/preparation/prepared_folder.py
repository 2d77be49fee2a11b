"""The folder of a prepared dataset: it appears when it is complete, and takes the place of an earlier one.

Files of an earlier preparation are known by their names. Others in the folder are the user's, and stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewards.scorers.document_frequencies import FILE_NAME
from scst.data.risc import CAPTIONS_FILE, IMAGES_FOLDER
from scst.errors import RecipeError

REPORT = "data_report.json"
"""File that a preparation leaves in every case."""
_FILES = (REPORT, "data_report.html", "run.json", FILE_NAME, CAPTIONS_FILE, IMAGES_FOLDER)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds anything, unless it is an earlier preparation to be replaced.

    Raises:
        RecipeError: saying what was found.
    """
    _finish_replacing(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / REPORT).is_file():
        raise RecipeError(
            f"output_dir: {str(output)!r} exists and was not made by scst prepare; give another folder"
        )
    if not overwrite:
        raise RecipeError(
            f"output_dir: {str(output)!r} holds an earlier prepared dataset; give another folder, or "
            "--overwrite true to replace it"
        )


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to write into; it takes its place when the block ends without an error.

    A process that is killed at any moment leaves the earlier folder or the new one, and the user's files; the
    next :func:`check_output` finishes what was begun.
    """
    work = output.with_name(output.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        if (output / REPORT).is_file():
            os.replace(output, _replaced(output))
        os.replace(work, output)  # over an empty folder, if there is one
        _finish_replacing(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replaced(output: Path) -> Path:
    return output.with_name(output.name + ".replaced")


def _finish_replacing(output: Path) -> None:
    """Put the earlier folder back if nothing took its place; else keep the user's files, and delete it."""
    replaced = _replaced(output)
    if not (replaced / REPORT).is_file():
        return  # there is none, or it is the user's
    if not output.exists():
        os.replace(replaced, output)
        return
    for path in replaced.iterdir():
        is_ours = path.name in _FILES or path.suffix == ".parquet"
        if not is_ours and not (output / path.name).exists():
            os.replace(path, output / path.name)
    shutil.rmtree(replaced)
