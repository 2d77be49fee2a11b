"""Writes the record of a run (``run.json``), and protects an output folder from a second run."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scst.data.files import write_json
from scst.errors import RecipeError
from scst.files.json_reader import as_object, read_json_object
from scst.training.secrets import without_secrets

RECORD_NAME = "run.json"
_PACKAGES = (
    "scst",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "deepspeed",
    "pycocoevalcap",
    "tokenizers",
)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def recorded_settings(adapter: str | Path) -> dict[str, Any]:
    """The settings of a training, from ``run.json`` in the adapter's folder or the one above; else ``{}``.

    Raises:
        DataError: the record cannot be read.
    """
    for folder in (Path(adapter), Path(adapter).parent):
        record = folder / RECORD_NAME
        if record.is_file():
            return as_object(read_json_object(record).get("recipe"), f"the recipe in {str(record)!r}")
    return {}


def write_run_record(
    output_dir: str | Path,
    *,
    stage: str,
    recipe: dict[str, Any],
    data_fingerprint: str,
    started: float,
    results: dict[str, Any],
) -> None:
    """Write ``run.json``. It is the last file of a run: a folder that has it holds a complete run.

    Args:
        output_dir: the run's folder.
        stage: "sft" or "scst".
        recipe: flat keys of the recipe, defaults included; secrets in it are not written.
        data_fingerprint: fingerprint of the training data.
        started: ``time.time()`` at the start of the run.
        results: timings and final numbers.
    """
    content = {
        "stage": stage,
        "recipe": without_secrets(recipe),
        "versions": versions(),
        "data_fingerprint": data_fingerprint,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
        **results,
    }
    write_json(Path(output_dir) / RECORD_NAME, content)


def claim_output_dir(output_dir: str, *, resume: bool | str, overwrite: bool) -> None:
    """Create the output folder, and refuse to mix two runs in one folder.

    Raises:
        RecipeError: when it holds an earlier run that is neither resumed nor overwritten, or cannot be
            written.
    """
    folder = Path(output_dir)
    earlier = [p for p in (*folder.glob("checkpoint-*"), folder / RECORD_NAME) if p.exists()]
    if earlier and not resume:
        if not overwrite:
            raise RecipeError(
                f"output_dir: {output_dir!r} holds an earlier run ({earlier[0].name}); give another folder, "
                "--resume true to continue it, or --overwrite true to replace it"
            )
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecipeError(f"output_dir: {output_dir!r} cannot be written: {error}") from error
