"""Rows that are made once, as an Arrow file in the cache folder, and mapped into memory by later readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from scst.data.cache_folder import CacheFolder, is_settled

KEPT = 3
"""Arrow files of one dataset: runs that started before its source changed may still read theirs."""


def mapped_rows(
    cache: CacheFolder, name: str, tables: Callable[[], Iterator[pa.Table]], *, changed_ns: int = 0
) -> datasets.Dataset:
    """Rows from the cache folder; made and written there when they are absent, damaged or too young.

    Args:
        cache: the folder of the dataset.
        name: of the Arrow file; it says what the rows come from, so that another source has another file.
        tables: makes the rows, a few at a time.
        changed_ns: when the source was changed last; a file written in the same moment is not trusted.

    Returns:
        The rows; in memory where the cache folder cannot be written.
    """
    known = _opened(cache.file(name), changed_ns)
    if known is not None:
        return known
    written = cache.write(name, lambda path: _write(tables(), path), keep=KEPT)
    if written is not None and (rows := _opened(written, 0)) is not None:
        return rows
    return datasets.Dataset(pa.concat_tables(list(tables())))


def _opened(path: Path, changed_ns: int) -> datasets.Dataset | None:
    """The dataset in an Arrow file; None when it is absent, damaged, or may be older than its source."""
    try:
        if not is_settled(changed_ns, path.stat().st_mtime_ns):
            return None
        return datasets.Dataset.from_file(str(path))
    except (OSError, pa.ArrowException):
        return None


def _write(tables: Iterator[pa.Table], path: Path) -> None:
    first = next(tables)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
