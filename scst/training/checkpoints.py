"""Checkpoints on disk: published as a whole, verified before use, pruned without losing the last good one.

A checkpoint is written into the staging folder of a run, gets a manifest (a list of its files with sizes and
SHA-256 sums), is flushed to the disk, and then renamed to ``checkpoint-<step>``. A process that dies before
the rename leaves nothing named like a checkpoint; a file that is damaged later does not match the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from scst.data.files import STAGING, flush_folder, write_json
from scst.errors import RecipeError

PREFIX = "checkpoint-"
MANIFEST = "complete.json"
"""File name of the manifest, which is written last."""
FORMAT = 2
"""Version of the layout of a checkpoint. Version 1 (scst 0.1.0) did not store the state of every part."""

_WRITE_FAILURES = (
    "No space left on device",
    "Read-only file system",
    "PytorchStreamWriter",  # torch.save reports neither errno nor path
    "inline_container",
    "I/O error",  # safetensors
)


def numbered_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every folder named like a checkpoint, newest first; contents are not verified."""
    folders = [p for p in Path(output_dir).glob(f"{PREFIX}*") if p.is_dir()]
    found = [(re.fullmatch(rf"{PREFIX}(\d+)", p.name), p) for p in folders]
    return sorted(((int(m.group(1)), p) for m, p in found if m), reverse=True)


def write_manifest(folder: Path, **record: Any) -> None:
    """Flush every file of a folder to the disk and write the manifest.

    Args:
        folder: folder of a complete checkpoint.
        record: plain values to store in the manifest as well.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(folder / MANIFEST, {**record, "format": FORMAT, "files": files})
    for directory in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        flush_folder(directory)


def publish(folder: Path, target: Path) -> None:
    """Rename a folder that has a manifest to ``target``; an older ``target`` is deleted first."""
    if target.exists():
        discard(target)
    os.replace(folder, target)
    flush_folder(target.parent)


def discard(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half-deleted one never looks like a checkpoint."""
    trash = folder.parent / STAGING / f"deleted-{folder.name}"
    trash.parent.mkdir(exist_ok=True)
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The content of a manifest: ``files`` (name -> ``bytes``, ``sha256``), ``format`` and the record."""
    return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))


def verify(folder: str | Path, *, sums: bool = True) -> str | None:
    """Check a folder against its manifest; returns the first fault, or None for a complete checkpoint.

    Args:
        folder: folder of the checkpoint.
        sums: True to read every file and compare its SHA-256 sum; False to compare sizes only.
    """
    folder = Path(folder)
    try:
        files = read_manifest(folder)["files"]
    except FileNotFoundError:
        return f"there is no {MANIFEST} in it: it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} holds {path.stat().st_size} bytes instead of {expected['bytes']}"
        if sums and _sum(path) != expected["sha256"]:
            return f"{name} is damaged (its SHA-256 sum has changed)"
    return None


def newest_complete(
    output_dir: str | Path, passed_over: Callable[[Path, str], None] = lambda folder, fault: None
) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; None when there is none.

    Args:
        output_dir: output folder of the run.
        passed_over: called with every newer folder that is not complete, and its fault.
    """
    for _, folder in numbered_checkpoints(output_dir):
        if (fault := verify(folder)) is None:
            return folder
        passed_over(folder, fault)
    return None


def checkpoint_to_resume(
    output_dir: str, resume: bool | str, say: Callable[[str], None] = lambda line: None
) -> str | None:
    """The checkpoint that ``resume`` asks for; None to start from the beginning.

    Args:
        output_dir: output folder of the run.
        resume: True for the newest complete checkpoint, False for none, or the folder of a checkpoint.
        say: called with a line of text for every checkpoint that is skipped because it is not complete.

    Raises:
        RecipeError: when a named checkpoint is not complete, or was written by version 0.1.0.
    """
    if isinstance(resume, str):
        if fault := verify(resume):
            raise RecipeError(f"resume: {resume!r} is no complete checkpoint: {fault}")
        return _of_this_format(Path(resume))
    if not resume:
        return None
    newest = newest_complete(
        output_dir,
        lambda folder, fault: say(f"resume: {folder.name} is passed over for the one before: {fault}"),
    )
    return _of_this_format(newest) if newest else None


def _of_this_format(checkpoint: Path) -> str:
    if read_manifest(checkpoint).get("format") != FORMAT:
        raise RecipeError(
            f"resume: {checkpoint} was written by version 0.1.0, which kept its state in another form: "
            f"finish that run with scst 0.1.0, or begin a new one from its adapter (--adapter {checkpoint})"
        )
    return str(checkpoint)


def prune(output_dir: str | Path, limit: int | None, protected: Collection[int] = ()) -> list[Path]:
    """Delete the oldest checkpoints beyond a limit, but never the newest complete one or a protected one.

    Incomplete checkpoints do not count towards the limit. Those older than the newest complete one are
    deleted too.

    Args:
        output_dir: output folder of the run.
        limit: number of checkpoints to keep, protected ones included; None or 0: all.
        protected: steps whose checkpoints are kept: the best one.

    Returns:
        The folders that were deleted.
    """
    if not limit or limit < 0:
        return []
    everything = numbered_checkpoints(output_dir)
    complete = [(step, p) for step, p in everything if verify(p, sums=False) is None]
    if not complete:
        return []
    newest = complete[0][0]
    kept = {newest} | {step for step, _ in complete if step in protected}
    for step, _ in complete:
        if len(kept) < limit:
            kept.add(step)
    doomed = [p for step, p in everything if step < newest and step not in kept]
    for folder in doomed:
        discard(folder)
    return doomed


def is_write_failure(error: BaseException) -> bool:
    """Whether an exception, or one that caused it, says that a disk is full, read-only or broken.

    ``torch.save`` and ``safetensors`` raise exceptions of other types; they are recognised by their texts.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) or any(text in str(seen) for text in _WRITE_FAILURES):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
