"""The manifest of a checkpoint: a list of its files with sizes and SHA-256 sums, and a sum of itself.

It is read with suspicion: whatever a broken disk makes of it, the answer is a checkpoint that is complete or
a sentence about what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from scst.data.files import flush_folder, write_json

MANIFEST = "complete.json"
"""File name of the manifest, which is written last."""
FORMAT = 3
"""Version of the layout of a checkpoint; from version 3 on the manifest has a sum of itself."""
READ_FORMATS = (2, 3)
"""Versions that runs are resumed from. Version 1 (scst 0.1.0) did not store the state of every part."""
_KEYS = {
    1: {"step", "ended", "values", "files"},
    2: {"step", "ended", "format", "files"},
    3: {"step", "ended", "format", "files", "sha256"},
}
_MAX_BYTES = 100_000_000


class DamagedManifest(Exception):
    """A manifest that cannot be read, or does not say what manifests say."""


def write_manifest(folder: Path, *, step: int, ended: bool = False) -> None:
    """Flush every file of a folder to the disk and write the manifest.

    Args:
        folder: folder of a complete checkpoint.
        step: optimizer steps so far.
        ended: whether the run has ended by its own rules.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sum(path)}
    content = {"step": step, "ended": ended, "format": FORMAT, "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": _sum_of(content)})
    for directory in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        flush_folder(directory)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The content of a manifest: ``files`` (name -> ``bytes``, ``sha256``), ``format``, ``step``, ``ended``.

    Raises:
        FileNotFoundError: there is none.
        DamagedManifest: it cannot be read, or its content is not what was written.
    """
    path = Path(folder) / MANIFEST
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise DamagedManifest("it is no file")
        if path.stat().st_size > _MAX_BYTES:
            raise DamagedManifest(f"it holds more than {_MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedManifest(str(error)) from error
    if not isinstance(content, dict):
        raise DamagedManifest("it is no mapping")
    _check(content)
    return {"format": 1} | content


def _check(content: Mapping[str, Any]) -> None:
    """Refuse keys and values that no manifest has, and a sum that is not that of the rest."""
    version = content.get("format", 1)
    if not isinstance(version, int) or set(content) != _KEYS.get(version):
        raise DamagedManifest("it lacks keys, or has others")
    step, files = content["step"], content["files"]
    if type(step) is not int or step < 0 or type(content["ended"]) is not bool:
        raise DamagedManifest("step or ended is of a wrong kind")
    if not isinstance(files, dict) or not files:
        raise DamagedManifest("it lists no files")
    for name, entry in files.items():
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise DamagedManifest("its list of files is damaged")
    if "sha256" in content:
        rest = {key: value for key, value in content.items() if key != "sha256"}
        if _sum_of(rest) != content["sha256"]:
            raise DamagedManifest("its own SHA-256 sum has changed")


def verify(folder: str | Path, *, sums: bool = True) -> str | None:
    """Check a folder against its manifest; returns the first fault, or None for a complete checkpoint.

    Args:
        folder: folder of the checkpoint; one named ``checkpoint-<step>`` must be of that step.
        sums: True to read every file and compare its SHA-256 sum; False to compare sizes only.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return f"there is no {MANIFEST} in it: it was not written to its end"
    except DamagedManifest as damage:
        return f"its {MANIFEST} cannot be read: {damage}"
    number = folder.name.rpartition("-")[2]
    if number.isdecimal() and int(number) != manifest["step"]:
        return f"its {MANIFEST} is that of step {manifest['step']}"
    faults = (_fault(folder, name, entry, sums) for name, entry in manifest["files"].items())
    return next((fault for fault in faults if fault is not None), None)


def _fault(folder: Path, name: str, expected: Mapping[str, Any], sums: bool) -> str | None:
    """What is wrong with a file."""
    path = folder / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} holds {path.stat().st_size} bytes instead of {expected['bytes']}"
        if sums and _sum(path) != expected["sha256"]:
            return f"{name} is damaged (its SHA-256 sum has changed)"
    except (OSError, ValueError) as error:  # a broken disk; a name that no file can have
        return f"{name} cannot be read: {error}"
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of(content: Mapping[str, Any]) -> str:
    """SHA-256 sum of plain values, whatever the blanks between them."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
