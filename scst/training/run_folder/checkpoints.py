"""Checkpoints on disk: published as a whole, verified before use, pruned without losing the last good one.

A checkpoint is written into the staging folder of a run, gets a manifest
(:mod:`scst.training.run_folder.manifest`), is flushed to the disk, and then renamed to ``checkpoint-<step>``.
A process that dies before the rename leaves nothing named like a checkpoint; a file that is damaged later
does not match the manifest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from scst.data.files import STAGING, flush_folder
from scst.errors import RecipeError
from scst.training.run_folder.manifest import READ_FORMATS, read_manifest, verify

PREFIX = "checkpoint-"

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
    found = [(re.fullmatch(rf"{PREFIX}([0-9]+)", p.name), p) for p in folders]
    return sorted(((int(m.group(1)), p) for m, p in found if m), reverse=True)


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
    if read_manifest(checkpoint)["format"] not in READ_FORMATS:
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
