"""The columns every dataset is brought to: ``image``, ``references``, ``image_id``, ``split``.

Further columns are kept as they are.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from scst.errors import DataError

TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)
STORED_IMAGE = datasets.Image(decode=False)
CAPTION_COLUMNS = ("references", "captions")
ID_COLUMNS = ("image_id", "filename", "file_name")  # hub datasets often have only the file's name
EXPECTED = {
    "image": "image bytes, a path, or both",
    "references": "a list of strings per image",
    "image_id": "a string",
    "split": "a string",
}


TEXT_BATCH = 10_000
"""Rows whose text is in memory at once while a column is read."""


def text_batches(rows: Any, *names: str) -> Iterator[tuple[list[Any], ...]]:
    """Read columns from the first row to the last, many rows at a time.

    Args:
        rows: a dataset, or one that is streamed.
        names: columns.

    Yields:
        A list of values per column.
    """
    for batch in rows.select_columns(list(names)).iter(batch_size=TEXT_BATCH):
        yield tuple(batch[name] for name in names)


def values_of(column: Sequence[Any]) -> Iterator[Any]:
    """The values of a list or a column of a dataset; one by one, a dataset's take ten times as long."""
    for start in range(0, len(column), TEXT_BATCH):
        yield from column[start : start + TEXT_BATCH]


def check_columns(names: Iterable[str], where: str) -> None:
    """Raise DataError, naming the found columns, unless an image, captions and an id are among them."""
    names = list(names)
    missing = [
        " or ".join(group)
        for group in (("image",), CAPTION_COLUMNS, ID_COLUMNS)
        if not set(group) & set(names)
    ]
    if missing:
        raise DataError(
            f"{where}: expected the columns image, captions, image_id, split; missing: {'; '.join(missing)}. "
            f"Found columns: {', '.join(names) or 'none'}. Rename them in the dataset."
        )


def normalise(part: datasets.Dataset, where: str, split: str) -> datasets.Dataset:
    """Give one part of a dataset the common columns, without copying image bytes.

    Args:
        part: rows as they were stored.
        where: file or dataset name for messages.
        split: the split of rows that name none themselves.

    Raises:
        DataError: a column is missing, has the wrong type or is damaged.
    """
    check_columns(part.column_names, where)
    _check_content(part, where)
    if "references" not in part.column_names:
        part = part.rename_column("captions", "references")
    part = _cast(_with_ids(part), "image_id", TEXT, where)
    part = _cast(part, "references", TEXTS, where)
    part = _cast(part, "image", STORED_IMAGE, where)
    return _with_split(part, split, where)


def concatenate(parts: list[datasets.Dataset], where: str) -> datasets.Dataset:
    """Put parts with the same columns one after the other. Raises DataError when their types differ."""
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{where}: its parts do not have the same columns: {error}") from error


def _check_content(part: datasets.Dataset, where: str) -> None:
    """Refuse offsets that point nowhere and texts that are none: Arrow's files have no checksum."""
    for name in part.column_names:
        try:
            part.data.column(name).validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{where}: the column {name} is damaged: {str(error)[:300]}") from error


def _cast(part: datasets.Dataset, name: str, feature: Any, where: str) -> datasets.Dataset:
    found = part.features[name]
    if found == feature:  # casting text copies the whole table, images included
        return part
    try:
        if feature == TEXTS and not _holds_text(found):
            raise TypeError("numbers are not captions")
        return part.cast_column(name, feature)
    except (TypeError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{where}: column {name} should hold {EXPECTED[name]}; found {found}.") from error


def _holds_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return getattr(inner, "dtype", None) in ("string", "large_string", "null")


def _with_ids(part: datasets.Dataset) -> datasets.Dataset:
    if "image_id" in part.column_names:
        return part
    name = next(name for name in ID_COLUMNS if name in part.column_names)
    return part.add_column("image_id", [Path(value or "").stem for value in part[name]], feature=TEXT)


def _with_split(part: datasets.Dataset, split: str, where: str) -> datasets.Dataset:
    if "split" not in part.column_names:
        return part.add_column("split", [split] * len(part), feature=TEXT)
    part = _cast(part, "split", TEXT, where)
    values = part["split"][:]
    if all(values):
        return part
    return part.remove_columns("split").add_column(
        "split", [value or split for value in values], feature=TEXT
    )
