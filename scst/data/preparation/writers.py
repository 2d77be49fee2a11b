"""A prepared dataset on disk, in a layout that every command reads: a RISC folder or parquet, row by row."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from scst.data.images import decode_image, image_bytes
from scst.data.preparation.streams import ParquetSink, Row
from scst.data.risc import CAPTIONS_FILE, IMAGES_FOLDER, refuse_outside_path
from scst.errors import DataError

LAYOUTS = ("auto", "risc", "parquet", "none")


class Writer(Protocol):
    """Takes rows in order, then is closed."""

    def add(self, row: Row) -> None: ...

    def close(self) -> None: ...


def make_writer(layout: str, folder: Path, features: Mapping[str, Any], most_captions: int) -> Writer:
    """The writer of a layout, ``risc`` or ``parquet``.

    Args:
        folder: an existing folder.
        features: of the columns beside image, captions, id and split.
        most_captions: of any row; a RISC table has a column for each.
    """
    if layout == "risc":
        return RiscWriter(folder, list(features), most_captions)
    return ParquetWriter(folder, features)


class RiscWriter:
    """``captions.csv`` beside ``resized/``; pictures are copied byte for byte.

    Args:
        folder: where both are made.
        extra: names of further columns.
        most_captions: caption columns; rows with fewer leave the last ones empty.
    """

    def __init__(self, folder: Path, extra: Sequence[str], most_captions: int):
        self.images = folder / IMAGES_FOLDER
        self.images.mkdir()
        self.most = most_captions
        self.extra = [name for name in extra if name != "source"]
        self._file = (folder / CAPTIONS_FILE).open("w", encoding="utf-8", newline="")
        self._table = csv.writer(self._file)
        captions = [f"caption_{number + 1}" for number in range(most_captions)]
        self._table.writerow(["source", "split", "image", *captions, *self.extra])

    def add(self, row: Row) -> None:
        """Copy the picture as ``image_id`` with its ending, and write the line.

        Raises:
            DataError: the id cannot be a file name.
        """
        data = image_bytes(row.image)
        name = row.image_id + ending(row.image["path"], data)
        refuse_outside_path(name, f"image_id {row.image_id!r}", f"{IMAGES_FOLDER}/")
        if "/" in name or "\\" in name or "\0" in name:
            raise DataError(
                f"image_id {row.image_id!r} cannot be a file name in {IMAGES_FOLDER}/; use --layout parquet"
            )
        (self.images / name).write_bytes(data)
        captions = [*row.references, *[""] * (self.most - len(row.references))]
        extra = [row.columns.get(column, "") for column in self.extra]
        self._table.writerow([row.columns.get("source", ""), row.split, name, *captions, *extra])

    def close(self) -> None:
        """Complete the table."""
        self._file.close()


def ending(path: str | None, data: bytes) -> str:
    """The file ending of a stored image: its own, or that of its format."""
    if path and re.fullmatch(r"\.\w{1,5}", Path(path).suffix):
        return Path(path).suffix
    return f".{(decode_image(data).format or 'png').lower()}"


class ParquetWriter:
    """A parquet file per split, images inside.

    Args:
        folder: where they are made.
        features: of further columns.
    """

    def __init__(self, folder: Path, features: Mapping[str, Any]):
        self.folder, self.features = folder, features
        self._sinks: dict[str, ParquetSink] = {}

    def add(self, row: Row) -> None:
        """Append a row to the file of its split."""
        if row.split not in self._sinks:
            name = re.sub(r"[^\w.-]", "_", row.split) or "data"
            self._sinks[row.split] = ParquetSink(self.folder / f"{name}.parquet", self.features)
        self._sinks[row.split].add(row)

    def close(self) -> None:
        """Complete the files."""
        for sink in self._sinks.values():
            sink.close()
