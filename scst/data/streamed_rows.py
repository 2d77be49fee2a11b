"""Rows that are read in order and never all at once: shuffled block by block, with a position to resume at.

A pass over the source is cut into blocks of ``block`` rows. Each is read, put into a random order that
depends on (seed, pass, block) alone, and handed out. The position is that of the source before the block and
a number within it, so a resumed run reads one block again and continues with the very next row.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets

from scst.data.columns import CAPTION_COLUMNS, ID_COLUMNS, STORED_IMAGE
from scst.data.images import decode_image, image_bytes, probe_image, upright
from scst.data.validate import caption_problem
from scst.errors import DataError

Row = dict[str, Any]


@dataclass
class StreamPosition:
    """Where a stream is continued, and the state of that in a checkpoint.

    Attributes:
        pass_: passes over the source that are over.
        block: blocks of this pass that are over.
        row: rows of the present block that were handed out.
        source: state of the source before the present block; None at the beginning of a pass.
    """

    pass_: int = 0
    block: int = 0
    row: int = 0
    source: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"pass_": self.pass_, "block": self.block, "row": self.row, "source": self.source}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class StreamedRows:
    """The training rows of a stream.

    Attributes:
        source: rows in order, images encoded.
        where: names the source in messages.
        block: rows that are in memory and shuffled together; 1: the source's own order.
        seed: of the order.
        on_bad_example: ``"error"``, or ``"skip"``; then every process decodes every image, as all must know
            which are left out.
        position: where the next iteration begins; moved by who takes the batches.
    """

    source: datasets.IterableDataset
    where: str
    block: int = 1000
    seed: int = 0
    on_bad_example: str = "error"
    position: StreamPosition = field(default_factory=StreamPosition)

    def batches(self, batch_size: int, *, drop_last: bool = False) -> Iterator[tuple[list[Row], Row]]:
        """Batches from :attr:`position` on, pass after pass, without end; the last of a pass may be smaller.

        Yields:
            Rows, images encoded, and the state of the position behind them.

        Raises:
            DataError: a row cannot be used, or a pass has not one usable row.
        """
        at = StreamPosition(**self.position.state_dict())
        while True:
            batch: list[Row] = []
            num_rows = at.block + at.row
            for row, behind in self._rows_of_pass(at):
                batch.append(row)
                num_rows += 1
                if len(batch) == batch_size:
                    yield batch, behind
                    batch = []
            if num_rows == 0:
                raise DataError(f"{self.where}: not one usable row came from the stream.")
            at = StreamPosition(at.pass_ + 1)
            if batch and not drop_last:
                yield batch, at.state_dict()

    def first(self, count: int) -> datasets.Dataset:
        """The first usable rows as a dataset in memory, images decoded when they are asked for."""
        rows = list(islice(self._usable(iter(copy.deepcopy(self.source))), count))
        if not rows:
            raise DataError(f"{self.where}: not one usable row came from the stream.")
        columns = {name: [row.get(name) for row in rows] for name in rows[0]}
        images = columns.pop("image")
        data = datasets.Dataset.from_dict(columns).add_column("image", images, feature=STORED_IMAGE)
        return data.cast_column("image", datasets.Image())

    def references(self) -> Iterator[list[str]]:
        """The captions of every usable row of one pass."""
        return (row["references"] for row in self._usable(iter(copy.deepcopy(self.source))))

    def _rows_of_pass(self, start: StreamPosition) -> Iterator[tuple[Row, Row]]:
        """The rows of a pass from a position on, each with the state of the position behind it."""
        source = copy.deepcopy(self.source)  # a state that was loaded once would stay for later passes
        if start.source is not None:
            source.load_state_dict(start.source)
        rows = self._usable(iter(source))
        at, before = start, start.source
        while block := list(islice(rows, self.block)):
            after = copy.deepcopy(source.state_dict())
            order = list(range(len(block)))
            random.Random(f"{self.seed}:{at.pass_}:{at.block}").shuffle(order)
            for place in range(at.row, len(order)):
                is_last = place + 1 == len(order)
                behind = (
                    StreamPosition(at.pass_, at.block + 1, 0, after)
                    if is_last
                    else StreamPosition(at.pass_, at.block, place + 1, before)
                )
                yield block[order[place]], behind.state_dict()
            at, before = StreamPosition(at.pass_, at.block + 1, 0, after), after

    def _usable(self, examples: Iterator[Row]) -> Iterator[Row]:
        for number, example in enumerate(self._readable(examples)):
            row = common_row(example, self.where)
            has_id = bool(row["image_id"].strip())
            problem = caption_problem(row["references"]) if has_id else "image_id is empty"
            if problem is None and self.on_bad_example == "skip":
                problem = probe_image(row["image"]).problem
            if problem is None:
                yield row | {"references": [text for text in row["references"] if text.strip()]}
            elif self.on_bad_example == "error":
                raise DataError(
                    f"{self.where}: {row['image_id'] or f'row {number}'} cannot be used: {problem}. Repair "
                    "or remove it, or leave such rows out with --on_bad_example skip."
                )

    def _readable(self, examples: Iterator[Row]) -> Iterator[Row]:
        try:
            yield from examples
        except (OSError, DataError):
            raise
        except Exception as error:  # whatever the libraries raise on damaged data
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            raise DataError(f"{self.where}: the stream cannot be read here: {reason}") from error


IMAGE_KEYS = ("image", "jpg", "jpeg", "png", "webp")
"""Names of an image in a row; those of a tar archive are the endings of its files."""


def common_row(example: Row, where: str) -> Row:
    """A row with the columns ``image``, ``references`` and ``image_id``, and the others as they are.

    A row of a tar archive (webdataset) has an image, and its captions in a ``json`` (``captions`` or
    ``references``; other keys become columns) or in a ``txt``, one a line; its id is the files' common name.

    Raises:
        DataError: naming what is there, when something is missing.
    """
    row = {name: value for name, value in example.items() if not name.startswith("__")}
    image = next((row.pop(name) for name in IMAGE_KEYS if name in row), None)
    described = row.pop("json", None)
    row |= described if isinstance(described, dict) else {}
    text = row.pop("txt", None)
    lines = text.splitlines() if isinstance(text, str) else None
    references = next((row.pop(name) for name in CAPTION_COLUMNS if name in row), lines)
    names = [name for name in ID_COLUMNS if row.get(name) is not None]
    image_id = row.pop(names[0]) if names else example.get("__key__")
    if image is None or references is None or image_id is None:
        raise DataError(
            f"{where}: expected an image ({', '.join(IMAGE_KEYS)}), captions (captions, references, or a txt "
            f"with one a line) and an id in every row; found {', '.join(example) or 'nothing'}."
        )
    return row | {"image": image, "references": list(references), "image_id": str(image_id)}


def decoded(row: Row) -> Row:
    """A row with its image decoded.

    Raises:
        DataError: naming the row, when there is no picture.
        OSError: when its file cannot be read.
    """
    try:
        image = decode_image(image_bytes(row["image"]))
    except DataError as error:
        raise DataError(f"{row['image_id']}: {error}") from error
    return row | {"image": upright(image)}
