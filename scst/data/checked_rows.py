"""From rows to checked splits: bad examples left out, no image in two splits, counted and fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from rich.console import Console

from scst.data.columns import text_batches, values_of
from scst.data.content_hashes import ContentHashes
from scst.data.data_source import DataSource, seeded_subset
from scst.data.image_files import ImageFiles
from scst.data.load_record import LoadRecord
from scst.data.splits import check_leakage, split_rows
from scst.data.validate import BadExample, inspect_examples
from scst.errors import DataError


def data_fingerprint(
    splits: Mapping[str, datasets.Dataset | Mapping[str, Sequence[Any]]],
    content_hashes: Mapping[str, Sequence[str]],
) -> str:
    """Return the sha256 over split names, ids, references and image hashes, in row order."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        columns = (splits[name]["image_id"], splits[name]["references"], content_hashes[name])
        for row in zip(*map(values_of, columns), strict=True):
            digest.update(json.dumps([name, *row]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class CheckedRows:
    """Rows that were checked.

    Attributes:
        numbers: of the good rows in the source.
        rows: the good rows.
        hashes: of their images.
        bad: the others.
        blank_captions: that were removed.
    """

    numbers: np.ndarray
    rows: datasets.Dataset
    hashes: ContentHashes
    bad: list[BadExample]
    blank_captions: int


def check_rows(
    source: DataSource,
    chosen: Mapping[str, np.ndarray],
    images: Mapping[str, ImageFiles],
    check: str,
    seed: int,
    console: Console | None,
) -> dict[str, CheckedRows]:
    """The chosen rows after inspection."""
    found = {}
    for name, numbers in chosen.items():
        memory = source.memory(numbers, images[name], check, seed)
        each = inspect_examples(source.select(numbers), console, memory=memory)
        found[name] = CheckedRows(
            numbers[each.kept], each.rows, each.content_hashes, each.bad, each.blank_captions
        )
    return found


def cut_into_splits(
    source: DataSource,
    everything: CheckedRows,
    splits: Sequence[str],
    fractions: str,
    seed: int,
    limits: Mapping[str, int],
) -> dict[str, CheckedRows]:
    """Cut the good rows of a whole dataset into the named splits."""
    hashes = everything.hashes
    parts = split_rows(everything.rows, splits, fractions, seed, content_hashes=hashes)
    numbers = limited(source, {n: everything.numbers[part] for n, part in parts.items()}, limits, seed)
    place = np.full(len(source.rows), -1)
    place[everything.numbers] = np.arange(len(everything.numbers))
    blank = dict.fromkeys(parts, 0) | {next(iter(parts)): everything.blank_captions}
    return {
        name: CheckedRows(of, everything.rows.select(place[of]), hashes.take(place[of]), [], blank[name])
        for name, of in numbers.items()
    }


def record_of(source: DataSource, checked: Mapping[str, CheckedRows], bad: list[BadExample]) -> LoadRecord:
    """What is known of checked splits, after a look for images that are in two of them."""
    rows = {name: each.rows for name, each in checked.items()}
    hashes = {name: each.hashes for name, each in checked.items()}
    for name, part in rows.items():
        if len(part) == 0:
            raise DataError(f"no usable example is left in the split {name!r}; {len(bad)} were bad.")
    check_leakage(rows, content_hashes=hashes)
    return LoadRecord(
        rows={name: each.numbers for name, each in checked.items()},
        fingerprint=data_fingerprint(rows, hashes),
        counts={name: _counts(part, hashes[name]) for name, part in rows.items()},
        bad_examples=bad,
        blank_captions=sum(each.blank_captions for each in checked.values()),
    )


def _counts(rows: datasets.Dataset, content_hashes: ContentHashes) -> dict[str, int]:
    captions = distinct = 0
    for (groups,) in text_batches(rows, "references"):
        captions += sum(map(len, groups))
        distinct += sum(len(set(group)) for group in groups)
    return {
        "images": len(rows),
        "captions": captions,
        "distinct_captions": distinct,
        "duplicates": len(content_hashes) - content_hashes.num_distinct,
    }


def limited(
    source: DataSource, parts: Mapping[str, np.ndarray], limits: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """Draw at most so many rows of each split.

    Args:
        source: the rows.
        parts: row numbers of each split.
        limits: most rows of a split; one that is not named keeps all.
        seed: of the draw, which depends on image ids and not on the order of rows.

    Returns:
        The row numbers that are left, of each split.
    """
    return {
        name: numbers[_subset(source, numbers, limits[name], seed)] if name in limits else numbers
        for name, numbers in parts.items()
    }


def _subset(source: DataSource, numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    ids = source.select(numbers).select_columns("image_id")["image_id"][:]
    return seeded_subset(ids, count, seed, "limit")
