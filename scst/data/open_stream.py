"""Datasets that are read in order while they are trained on: tar archives, parquet, hub datasets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from scst.data.cache_folder import stamp
from scst.data.columns import STORED_IMAGE
from scst.data.data_files import parquet_files, stem_split, tar_files
from scst.data.load_splits import LoadedData
from scst.data.sources import HUB_FAILURES, find_form, hub_error, open_rows
from scst.data.splits import VAL_ALIASES, split_rows
from scst.data.streamed_rows import IMAGE_KEYS, StreamedRows
from scst.data.validate import check_policy
from scst.errors import DataError, RecipeError


def is_streamed(dataset: str, streaming: bool) -> bool:
    """Whether a dataset is read as a stream: when asked for, and tar archives always.

    Raises:
        DataError: there is no such dataset.
    """
    return streaming or find_form(dataset) == "tar"


def load_stream(
    dataset: str,
    train_split: str,
    *,
    held_out: Sequence[str] = (),
    held_out_images: int = 200,
    block: int = 1000,
    seed: int = 0,
    on_bad_example: str = "error",
) -> LoadedData:
    """Open a dataset to train on in order; nothing is read but the first rows of the held-out splits.

    Args:
        dataset: tar archives (``*.tar``, one or a folder of them), parquet, a hub id, or any other form.
        train_split: the split that is streamed.
        held_out: splits whose first rows are read into memory, to evaluate on.
        held_out_images: how many of each.
        block: rows that are shuffled together; 1: the source's own order.
        seed: of the order.
        on_bad_example: ``"error"`` or ``"skip"``.

    Raises:
        DataError: the dataset, a split or a held-out row cannot be used.
        RecipeError: an argument cannot be used.
    """
    check_policy(on_bad_example)
    if block < 1:
        raise RecipeError(f"stream_block: expected 1 or more, got {block}")

    def stream(split: str, rows: int) -> StreamedRows:
        where = f"{dataset}, split {split}"
        return StreamedRows(open_split(dataset, split), where, rows, seed, on_bad_example)

    return LoadedData(
        splits={name: stream(name, 1).first(held_out_images) for name in held_out},
        bad_examples=[],
        fingerprint=_fingerprint(dataset),
        duplicates=0,
        counts={},
        streams={train_split: stream(train_split, block)},
    )


def open_split(dataset: str, split: str) -> datasets.IterableDataset:
    """The rows of a split in the order of the source, images encoded.

    Raises:
        DataError: there is no such dataset or split.
    """
    form, path = find_form(dataset), Path(dataset).expanduser()
    if form in ("tar", "parquet"):
        files = files_of_split(tar_files(path) if form == "tar" else parquet_files(path), split, dataset)
        builder = "webdataset" if form == "tar" else "parquet"
        source = datasets.load_dataset(
            builder, data_files=[str(file) for file in files], split="train", streaming=True
        )
        source = _of_split(source, split) if form == "parquet" else source
    elif form == "hub":
        try:
            source = datasets.load_dataset(dataset, split=split, streaming=True)
        except HUB_FAILURES as error:
            raise hub_error(dataset, error) from error
    else:
        rows = open_rows(dataset)
        source = rows.select(split_rows(rows, [split], None, 0)[split]).to_iterable_dataset()
    for name in IMAGE_KEYS:
        if source.features is not None and isinstance(source.features.get(name), datasets.Image):
            source = source.cast_column(name, STORED_IMAGE)
    return source


def files_of_split(files: Sequence[Path], split: str, dataset: str) -> list[Path]:
    """The files whose names begin with a split's name; all of them where none names a split.

    Raises:
        DataError: others are named, this one is not.
    """
    named = {file: stem_split(file) for file in files}
    wanted = {split, *(VAL_ALIASES if split in VAL_ALIASES else ())}
    found = [file for file, name in named.items() if name in wanted]
    if not found and not any(named.values()):
        return list(files)
    if not found:
        there = ", ".join(sorted(set(filter(None, named.values()))))
        raise DataError(f"{dataset}: there is no split {split!r}; its files are of {there}.")
    return found


def _of_split(source: datasets.IterableDataset, split: str) -> datasets.IterableDataset:
    """The rows whose column ``split`` says so, where there is one."""
    if "split" not in (source.features or {}):
        return source
    wanted = {split, None, "", *(VAL_ALIASES if split in VAL_ALIASES else ())}
    return source.filter(lambda value: value in wanted, input_columns=["split"])


def _fingerprint(dataset: str) -> str:
    """Of the name, and of size and time of what files there are; contents are not read."""
    form, path = find_form(dataset), Path(dataset).expanduser()
    files = tar_files(path) if form == "tar" else parquet_files(path) if form == "parquet" else []
    stamps = [(os.path.basename(file), *stamp(file)) for file in files]
    return hashlib.sha256(f"stream:{dataset}:{stamps}".encode("utf-8", "surrogateescape")).hexdigest()
