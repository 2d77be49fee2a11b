"""Load a dataset by name, as checked splits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from rich.console import Console

from scst.data.checked_rows import check_rows, cut_into_splits, limited, record_of
from scst.data.data_source import DataSource
from scst.data.fractions import parse_fractions, refuse_to_resplit
from scst.data.load_record import LoadRecord, LoadRecords, record_key
from scst.data.memory import release_memory
from scst.data.sources import open_rows
from scst.data.splits import count_splits, split_rows
from scst.data.streamed_rows import StreamedRows
from scst.data.terminal import plain
from scst.data.validate import (
    BadExample,
    check_mode,
    check_policy,
    refuse_bad,
    without_blank_captions,
)
from scst.errors import DataError, RecipeError

OWN_SPLITS = ("train", "val", "test")
"""Splits that fractions make; two fractions make the first two."""
EVERYTHING = "all rows"


@dataclass(frozen=True)
class LoadedData:
    """Splits that can be trained on and evaluated, and what was found on the way.

    Attributes:
        splits: rows per requested split; ``image`` decodes to PIL, beside ``references``, ``image_id``,
            ``split``.
        bad_examples: the examples that were left out.
        fingerprint: sha256 over split names, ids, references and image hashes in row order: the same rows in
            the same order give the same fingerprint on any machine and from any form.
        duplicates: images whose content an earlier image of the same split already had.
        counts: per split: ``images``, ``captions``, ``distinct_captions`` (summed over images),
            ``duplicates``.
        blank_captions: blank captions that were removed from otherwise good examples.
        streams: splits that are read in order while they are trained on (``scst.data.open_stream``).
        key: names the record of this load in the dataset's cache folder, for other processes; ``""``: none.
        consensus_first: splits whose captions :func:`scst.data.consensus.data_for` has put in order.
    """

    splits: dict[str, datasets.Dataset]
    bad_examples: list[BadExample]
    fingerprint: str
    duplicates: int
    counts: dict[str, dict[str, int]]
    blank_captions: int = 0
    streams: dict[str, StreamedRows] = field(default_factory=dict)
    key: str = ""
    consensus_first: frozenset[str] = frozenset()

    def __getitem__(self, split: str) -> datasets.Dataset:
        """The rows of a split.

        Raises:
            DataError: it was not loaded.
        """
        if split not in self.splits:
            raise DataError(f"there is no split {split!r}; loaded are {', '.join(self.splits)}.")
        return self.splits[split]

    def training_rows(self, split: str) -> datasets.Dataset | StreamedRows:
        """The rows of a split to train on: all of them, or a stream.

        Raises:
            DataError: it was not loaded.
        """
        return self.streams[split] if split in self.streams else self[split]


def load_splits(
    dataset: str,
    splits: Sequence[str],
    *,
    fractions: str | None = None,
    split_seed: int = 0,
    resplit: bool = False,
    on_bad_example: str = "error",
    limit: Mapping[str, int] | int | None = None,
    check: str = "remembered",
    console: Console | None = None,
) -> LoadedData:
    """Read, split, check and count a dataset, before any model is loaded.

    Args:
        dataset: any form of :func:`scst.data.sources.read_rows`.
        splits: the splits to return; images of others are not read.
        fractions: ``None`` for the dataset's own splits, or ``"80/10/10"`` (train/val/test).
        split_seed: seed of the fractions and of ``limit``.
        resplit: whether the fractions may take the place of splits that the dataset declares.
        on_bad_example: ``"error"``, or ``"skip"`` to leave bad examples out and list them in
            ``bad_examples``.
        limit: at most so many images of every split, or of the splits named: a seeded random subset
            (rows are often sorted by category, so the first N are no sample). The images of a smaller limit
            are a subset of those of a larger one.
        check: ``"remembered"`` decodes the images that were not checked before or have changed since (by
            size or modification time), ``"full"`` decodes all again, ``"sampled"`` decodes 1,000 of every
            split and only looks whether the others are there.
        console: where progress is drawn.

    Raises:
        DataError: the dataset, one of its examples or its splits cannot be used.
        RecipeError: an argument cannot be used.
    """
    check_policy(on_bad_example)
    check_mode(check, fractions)
    source = DataSource.open(dataset)
    if fractions is not None:
        _check_declared(count_splits(source.rows), resplit, console)
    request = _Request(tuple(splits), fractions, split_seed, on_bad_example, _limits(limit, splits), check)
    record, key = _record_of(source, request, console)
    data = _loaded(source, record, key)
    release_memory()  # what the columns of all rows took on the way
    return data


@dataclass(frozen=True)
class _Request:
    """What is asked of a dataset; arguments of :func:`load_splits`."""

    splits: tuple[str, ...]
    fractions: str | None
    seed: int
    on_bad_example: str
    limits: dict[str, int]
    check: str

    @property
    def settings(self) -> list[Any]:
        """What the outcome depends on beside the data, as JSON values."""
        limits, is_sampled = sorted(self.limits.items()), self.check == "sampled"
        return [list(self.splits), self.fractions, self.seed, self.on_bad_example, limits, is_sampled]


def _record_of(source: DataSource, request: _Request, console: Console | None) -> tuple[LoadRecord, str]:
    """The outcome of a load and its key: of an earlier one, or of the checks that are made here."""
    now, seed, limits = time.time_ns(), request.seed, request.limits
    if request.fractions is None:
        chosen = limited(source, split_rows(source.rows, request.splits, None, seed), limits, seed)
    else:  # all are checked before they are split: bad images must not count in exact fractions
        chosen = {EVERYTHING: np.arange(len(source.rows))}
    images = {name: source.images(numbers) for name, numbers in chosen.items()}
    key, records = record_key(source, request.settings, images, now), LoadRecords(source.cache)
    if request.check == "full":
        records.forget()
    if key and (known := records.find(key)) is not None:
        return known, key
    checked = check_rows(source, chosen, images, request.check, seed, console)
    bad = [example for each in checked.values() for example in each.bad]
    if request.on_bad_example == "error":
        refuse_bad(bad)
    if request.fractions is not None:
        checked = cut_into_splits(
            source, checked[EVERYTHING], request.splits, request.fractions, seed, limits
        )
    record = record_of(source, checked, bad)
    return record, key if key and records.keep(key, record) else ""


def load_again(dataset: str, key: str) -> LoadedData | None:
    """What another process has loaded, without any check; None when it left no record here.

    Args:
        dataset: as that process was given it.
        key: ``LoadedData.key`` there.
    """
    source = DataSource.open(dataset)
    record = LoadRecords(source.cache).find(key) if key else None
    return None if record is None else _loaded(source, record, key)


def load_dataset(
    dataset: str,
    *,
    splits: Sequence[str] | None = None,
    split_fractions: str | None = None,
    split_seed: int = 0,
    resplit: bool = False,
    on_bad_example: str = "error",
    limit: Mapping[str, int] | int | None = None,
    check: str = "remembered",
    console: Console | None = None,
) -> LoadedData:
    """Read and check a dataset; ``load_dataset("data/RISC")["train"]`` are the rows of a split.

    Args:
        dataset: RISC folder, parquet, saved dataset, hub id or ``embedded:scenes``.
        splits: which to read; None: all that the dataset declares, or that the fractions make.
        split_fractions: e.g. ``"80/10/10"`` (train/val/test); None: the dataset's own splits.
        split_seed, resplit, on_bad_example, limit, check, console: as of :func:`load_splits`.

    Raises:
        DataError: the dataset, one of its examples or its splits cannot be used.
        RecipeError: an argument cannot be used.
    """
    if splits is None and split_fractions is not None:
        splits = OWN_SPLITS[: len(parse_fractions(split_fractions))]
    if splits is None:
        splits = declared_splits(dataset)
    if not splits:
        raise DataError(f"{dataset!r} declares no splits: give split_fractions, e.g. '80/10/10'.")
    return load_splits(
        dataset,
        splits,
        fractions=split_fractions,
        split_seed=split_seed,
        resplit=resplit,
        on_bad_example=on_bad_example,
        limit=limit,
        check=check,
        console=console,
    )


def declared_splits(dataset: str) -> list[str]:
    """The names of a dataset's own splits, in the order of their first rows."""
    names = open_rows(dataset).select_columns("split").with_format("arrow")["split"][:]
    return [name for name in names.unique().to_pylist() if name is not None]


def _check_declared(declared: Mapping[str, int], resplit: bool, console: Console | None) -> None:
    """Refuse to discard declared splits, or say that they are discarded."""
    if not resplit:
        refuse_to_resplit(declared)
    elif len(declared) > 1 and console is not None:
        console.print(plain(f"resplit: the declared splits {', '.join(declared)} are discarded"))


def _loaded(source: DataSource, record: LoadRecord, key: str) -> LoadedData:
    """The splits of a record."""
    parts = {name: source.select(numbers) for name, numbers in record.rows.items()}
    if record.blank_captions:
        parts = {name: without_blank_captions(part)[0] for name, part in parts.items()}
    return LoadedData(
        splits={name: part.cast_column("image", datasets.Image()) for name, part in parts.items()},
        bad_examples=record.bad_examples,
        fingerprint=record.fingerprint,
        duplicates=sum(count["duplicates"] for count in record.counts.values()),
        counts=record.counts,
        blank_captions=record.blank_captions,
        key=key,
    )


def _limits(limit: Mapping[str, int] | int | None, splits: Sequence[str]) -> dict[str, int]:
    given = limit if isinstance(limit, Mapping) else {} if limit is None else dict.fromkeys(splits, limit)
    limits = {name: count for name, count in given.items() if count is not None}
    unknown = sorted(set(limits) - set(splits))
    if unknown:
        raise RecipeError(f"limit names the splits {', '.join(unknown)}, but loaded are {', '.join(splits)}.")
    wrong = {name: count for name, count in limits.items() if not isinstance(count, int) or count < 1}
    if wrong:
        raise RecipeError(f"limit should be a number of images, at least 1, or nothing; got {wrong}.")
    return limits
