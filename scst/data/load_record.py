"""The outcome of loading a dataset once, for later runs and for other processes: they repeat no check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from scst.data.cache_folder import CacheFolder, is_settled
from scst.data.data_source import DataSource
from scst.data.image_files import ImageFiles
from scst.data.validate import BadExample

KEPT = 16
"""Records of one dataset: one per combination of splits, fractions, limits and seeds."""


@dataclass(frozen=True)
class LoadRecord:
    """What is known after a dataset was checked.

    Attributes:
        rows: split -> numbers of its good rows in the source.
        fingerprint, counts, bad_examples, blank_captions: as of ``LoadedData``.
    """

    rows: dict[str, np.ndarray]
    fingerprint: str
    counts: dict[str, dict[str, int]]
    bad_examples: list[BadExample]
    blank_captions: int


class LoadRecords:
    """The records of one dataset.

    Args:
        cache: its folder.
    """

    def __init__(self, cache: CacheFolder):
        self.cache = cache

    def find(self, key: str) -> LoadRecord | None:
        """The record of a key; None when there is none, or it is damaged."""
        try:
            with np.load(self.cache.file(_name(key)), allow_pickle=False) as file:
                content = json.loads(file["record"].tobytes())
                rows = {name: file[f"rows_{i}"] for i, name in enumerate(content.pop("splits"))}
            content["bad_examples"] = [BadExample(*each) for each in content["bad_examples"]]
            return LoadRecord(rows, **content)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
            return None

    def forget(self) -> None:
        """Delete all records of the dataset."""
        for file in self.cache.newest("loaded-*"):
            file.unlink(missing_ok=True)

    def keep(self, key: str, record: LoadRecord) -> bool:
        """Write a record; returns whether it could be written."""
        content = {
            "splits": list(record.rows),
            "fingerprint": record.fingerprint,
            "counts": record.counts,
            "bad_examples": [[bad.image_id, bad.reason] for bad in record.bad_examples],
            "blank_captions": record.blank_captions,
        }
        text = np.frombuffer(json.dumps(content).encode(), np.uint8)
        arrays: dict[str, Any] = {f"rows_{i}": numbers for i, numbers in enumerate(record.rows.values())}
        arrays["record"] = text

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        return self.cache.write(_name(key), write, keep=KEPT) is not None


def record_key(source: DataSource, settings: Any, images: Mapping[str, ImageFiles], now_ns: int) -> str:
    """Name what a load depends on: source, settings, size and time of every image.

    Returns:
        A hash; ``""`` where it may change unnoticed: of a source without files, or where a file was changed
        in this moment.
    """
    changed = [int(each.changed.max(initial=0)) for each in images.values()]
    if not source.signature or not is_settled(max(source.changed_ns, *changed), now_ns):
        return ""
    parts = [settings, source.signature, [[name, each.fingerprint] for name, each in images.items()]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _name(key: str) -> str:
    return f"loaded-{key[:32]}.npz"
