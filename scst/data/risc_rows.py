"""The rows of a RISC folder as an Arrow file that is mapped into memory and not held in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from scst.data.cache_folder import CacheFolder, is_settled, stamp
from scst.data.columns import STORED_IMAGE, TEXT, TEXTS
from scst.data.risc import CAPTIONS_FILE, read_risc

KEPT = 3
"""Arrow files of one folder: runs that started before the CSV changed may still read theirs."""


def risc_rows(folder: Path) -> datasets.Dataset:
    """The rows of a RISC folder.

    The CSV is read once, a few rows at a time, into an Arrow file in the cache folder; later calls and other
    processes open that file as long as size and modification time of the CSV are the same.

    Raises:
        DataError: as :func:`scst.data.risc.read_risc`.
    """
    cache = CacheFolder(str(folder))
    size, changed = stamp(folder / CAPTIONS_FILE) if (folder / CAPTIONS_FILE).is_file() else (0, 0)
    name = f"rows-{size}-{changed}.arrow"
    known = _opened(cache.file(name), changed)
    if known is not None:
        return known
    written = cache.write(name, lambda path: _write(folder, path), keep=KEPT)
    if written is not None and (rows := _opened(written, 0)) is not None:
        return rows
    tables = list(_tables(folder))
    return datasets.Dataset(pa.concat_tables(tables))


def _opened(path: Path, changed_ns: int) -> datasets.Dataset | None:
    """The dataset in an Arrow file; None when it is absent, damaged, or may be older than its source."""
    try:
        if not is_settled(changed_ns, path.stat().st_mtime_ns):
            return None
        return datasets.Dataset.from_file(str(path))
    except (OSError, pa.ArrowException):
        return None


def _write(folder: Path, path: Path) -> None:
    tables = _tables(folder)
    first = next(tables)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables(folder: Path) -> Iterator[pa.Table]:
    special = {"image": STORED_IMAGE, "references": TEXTS}
    for columns in read_risc(folder):
        features = datasets.Features({name: special.get(name, TEXT) for name in columns})
        yield pa.Table.from_pydict(columns, schema=features.arrow_schema)
