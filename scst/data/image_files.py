"""Name, size and modification time of many images: what tells whether one was checked before."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scst.data.risc import LinkGuard

MISSING = -1
ROWS = 10_000  # whose paths are in memory at once


@dataclass(frozen=True)
class ImageFiles:
    """The images of N rows, as they are stored.

    Attributes:
        names: N paths; of bytes inside the dataset, its source and the row.
        sizes: (N,) encoded bytes; -1 for a file that is not there.
        changed: (N,) modification times in nanoseconds; 0 for bytes inside the dataset.
    """

    names: pa.Array
    sizes: np.ndarray
    changed: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, rows: np.ndarray) -> ImageFiles:
        """Those of some rows."""
        return ImageFiles(self.names.take(pa.array(rows)), self.sizes[rows], self.changed[rows])

    @property
    def fingerprint(self) -> str:
        """Of sizes and times; names are those of the source's rows."""
        return hashlib.sha256(self.sizes.tobytes() + self.changed.tobytes()).hexdigest()


def image_files(
    rows: datasets.Dataset, chosen: Sequence[int] | np.ndarray, source: str, folder: Path | None
) -> ImageFiles:
    """Look at the images of some rows without reading any.

    Args:
        rows: of a dataset as it was read (:func:`scst.data.sources.open_rows`).
        chosen: their numbers.
        source: names what the rows were read from; part of the names of images inside the dataset.
        folder: that links must not lead out of; None for a dataset without files of its own.

    Raises:
        DataError: a link leads out of the folder.
    """
    chosen = np.asarray(chosen, dtype=np.int64)
    guard = LinkGuard(folder) if folder is not None else None
    images = rows.select_columns("image").data.column("image")
    parts = [_some(images, chosen[i : i + ROWS], source, guard) for i in range(0, len(chosen), ROWS)]
    return ImageFiles(
        pa.concat_arrays([part.names for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.changed for part in parts]),
    )


def _some(images: pa.ChunkedArray, chosen: np.ndarray, source: str, guard: LinkGuard | None) -> ImageFiles:
    first, last = int(chosen.min()), int(chosen.max()) + 1
    near = images.slice(first, last - first)  # taking from all chunks would copy the bytes of all
    lengths = np.concatenate([_lengths(chunk) for chunk in near.chunks])[chosen - first]
    paths = pc.struct_field(near, "path").take(pa.array(chosen - first)).to_pylist()
    changed = np.zeros(len(chosen), dtype=np.int64)
    names = [f"{source}#{row}" for row in chosen.tolist()]
    for i in np.flatnonzero(lengths == MISSING).tolist():
        if paths[i]:
            names[i] = paths[i]
            lengths[i], changed[i] = _stamp(paths[i], guard)
    return ImageFiles(pa.array(names, pa.string()), lengths, changed)


def _lengths(images: pa.StructArray) -> np.ndarray:
    """How many bytes are inside; -1 for none."""
    inside = pc.binary_length(pc.struct_field(images, "bytes"))
    return pc.fill_null(inside, MISSING).to_numpy(zero_copy_only=False).astype(np.int64)


def _stamp(path: str, guard: LinkGuard | None) -> tuple[int, int]:
    try:
        status = os.lstat(path)
        if guard is not None:
            guard.check(path, is_link=stat.S_ISLNK(status.st_mode))
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return MISSING, 0
