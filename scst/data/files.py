"""Files that are complete or absent: written to a staging folder, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scst.data.visible import json_text

STAGING = ".staging"
"""Hidden folder of a run for what is not finished yet, or no longer wanted."""


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or absent: first beside it, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is complete or absent."""
    write_text(path, json_text(content, indent=2) + "\n")


def write_jsonl(rows: Sequence[dict[str, Any]], path: str | Path | None) -> None:
    """Write one JSON object per line to a file (complete or absent); to standard output without a path."""
    lines = "".join(json_text(row) + "\n" for row in rows)
    if path is None:
        sys.stdout.write(lines)
        return
    write_text(Path(path), lines)


def move_files(folder: Path, target: Path) -> None:
    """Move the files of a folder into another one; each replaces its predecessor in one instant."""
    give_umask(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    flush_folder(target)


def give_umask(folder: Path) -> None:
    """Give a folder and all below it the permissions that the user's umask asks for.

    Libraries write weights through temporary files, which only their owner can read.
    """
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def clean_up(output_dir: str | Path) -> None:
    """Remove the staging folder that a killed process has left behind."""
    shutil.rmtree(Path(output_dir) / STAGING, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that renames inside it survive a crash; flushing its files does not do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
