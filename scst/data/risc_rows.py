"""The rows of a RISC folder as an Arrow file that is mapped into memory and not held in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from scst.data.cache_folder import CacheFolder, stamp
from scst.data.columns import STORED_IMAGE, TEXT, TEXTS
from scst.data.mapped_rows import mapped_rows
from scst.data.risc import CAPTIONS_FILE, read_risc


def risc_rows(folder: Path) -> datasets.Dataset:
    """The rows of a RISC folder.

    The CSV is read once, a few rows at a time, into an Arrow file in the cache folder; later calls and other
    processes open that file as long as size and modification time of the CSV are the same.

    Raises:
        DataError: as :func:`scst.data.risc.read_risc`.
    """
    size, changed = stamp(folder / CAPTIONS_FILE) if (folder / CAPTIONS_FILE).is_file() else (0, 0)
    return mapped_rows(
        CacheFolder(str(folder)), f"rows-{size}-{changed}.arrow", lambda: _tables(folder), changed_ns=changed
    )


def _tables(folder: Path) -> Iterator[pa.Table]:
    special = {"image": STORED_IMAGE, "references": TEXTS}
    for columns in read_risc(folder):
        features = datasets.Features({name: special.get(name, TEXT) for name in columns})
        yield pa.Table.from_pydict(columns, schema=features.arrow_schema)
