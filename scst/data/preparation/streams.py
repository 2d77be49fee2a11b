"""Rows one after the other: a dataset of any size passes through the memory of a few hundred images.

:func:`scst.data.sources.read_rows` gives the random access that training wants, and for that brings parquet
and hub datasets into an Arrow file first. Preparing reads in order: RISC folders picture by picture, parquet
a few rows at a time, a hub dataset once, from the network into local parquet (:func:`spool`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from scst.data.columns import STORED_IMAGE, TEXT, TEXTS, normalise
from scst.data.data_files import parquet_files, parquet_schema, resolve_paths, stem_split
from scst.data.images import StoredImage, image_bytes
from scst.data.sources import HUB_FAILURES, find_form, hub_error, read_rows
from scst.errors import DataError

BATCH = 32  # rows in memory at once
ROW_GROUP = 100  # rows written at once
READ_BUFFER = 1 << 20  # bytes; without it a whole row group's images are read at once
COMMON = ("image", "references", "image_id", "split")


@dataclass(frozen=True)
class Row:
    """One image as it is stored, its captions, and the source's further columns."""

    image: StoredImage
    references: list[str]
    image_id: str
    split: str
    columns: Mapping[str, Any] = field(default_factory=dict)


class RowStream:
    """The rows of a dataset in order; every iteration reads them anew.

    Args:
        dataset: any form of :func:`scst.data.sources.read_rows`.
        spool_dir: where a hub dataset is kept while it is worked on.

    Attributes:
        form: of the dataset.
        features: of the source's further columns, known after the first row.

    Raises:
        DataError: as of ``read_rows``, here or while iterating.
    """

    def __init__(self, dataset: str, spool_dir: Path | None = None):
        self.form = find_form(dataset)
        self.features: dict[str, Any] = {}
        self._rows: datasets.Dataset | None = None
        self.dataset = dataset
        if self.form == "hub":
            if spool_dir is None:
                raise DataError(f"{dataset!r} is a hub id, which wants a folder to be kept in meanwhile")
            self.dataset = str(spool(dataset, spool_dir))
        elif self.form != "parquet":
            self._rows = read_rows(dataset)

    def __iter__(self) -> Iterator[Row]:
        count = 0
        for part in self._parts():
            self.features |= {name: part.features[name] for name in part.column_names if name not in COMMON}
            for row in part:
                count += 1
                extra = {name: row[name] for name in row if name not in COMMON}
                yield Row(row["image"], row["references"], row["image_id"], row["split"], extra)
        if count == 0:
            raise DataError(f"{self.dataset}: the dataset has no rows.")

    def _parts(self) -> Iterator[datasets.Dataset]:
        if self._rows is not None:
            return iter([self._rows])
        return _parquet_parts(self.dataset)


def _parquet_parts(dataset: str) -> Iterator[datasets.Dataset]:
    for path in parquet_files(Path(dataset).expanduser()):
        parquet_schema(path)
        with pq.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH, use_threads=False):
                part = datasets.Dataset(pa.Table.from_batches([batch]))
                yield resolve_paths(normalise(part, str(path), stem_split(path)), path, path.parent)


def spool(dataset: str, folder: Path) -> Path:
    """Write a hub dataset to parquet, a file per split, in one pass over the network; returns the folder.

    Raises:
        DataError: the hub or the dataset does not answer as expected.
    """
    try:
        loaded = datasets.load_dataset(dataset, streaming=True)
        folder.mkdir(parents=True, exist_ok=True)
        parts = loaded if isinstance(loaded, dict) else {"": loaded}
        for name, part in parts.items():
            _spool_split(part, name, folder, dataset)
    except HUB_FAILURES as error:
        raise hub_error(dataset, error) from error
    return folder


def _spool_split(part: Any, split: str, folder: Path, where: str) -> None:
    if part.features is not None and "image" in part.features:
        part = part.cast_column("image", STORED_IMAGE)
    sink: ParquetSink | None = None
    for columns in part.iter(batch_size=BATCH):
        rows = normalise(datasets.Dataset.from_dict(columns, features=part.features), where, split)
        extra = {name: rows.features[name] for name in rows.column_names if name not in COMMON}
        sink = sink or ParquetSink(folder / f"{split or 'data'}.parquet", extra)
        for row in rows:
            columns = {name: row[name] for name in extra}
            sink.add(Row(row["image"], row["references"], row["image_id"], row["split"], columns))
    if sink:
        sink.close()


class ParquetSink:
    """A parquet file (``image``, ``captions``, ``image_id``, ``split``, ...) written a few rows at a time.

    Args:
        path: the file.
        features: of further columns.
    """

    def __init__(self, path: Path, features: Mapping[str, Any]):
        common = {"image": STORED_IMAGE, "captions": TEXTS, "image_id": TEXT, "split": TEXT}
        self.schema = datasets.Features({**common, **features}).arrow_schema
        self._writer = pq.ParquetWriter(path, self.schema)
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Append a row; its image is stored inside, the path keeps the file's name only."""
        name = Path(str(row.image["path"] or row.image_id)).name
        image = {"bytes": image_bytes(row.image), "path": name}
        record = {"image": image, "captions": row.references, "image_id": row.image_id, "split": row.split}
        self._waiting.append(dict.fromkeys(self.schema.names) | dict(row.columns) | record)
        if len(self._waiting) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what waits, and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self.schema))
            self._waiting = []
