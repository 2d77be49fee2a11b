"""Load a dataset by name, as checked splits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
from rich.console import Console

from scst.data.sources import read_rows
from scst.data.splits import check_leakage, parse_fractions, seeded_hash, select_splits
from scst.data.validate import BadExample, Inspection, check_policy, inspect_examples, refuse_bad
from scst.errors import DataError, RecipeError

OWN_SPLITS = ("train", "val", "test")
"""Splits that fractions make; two fractions make the first two."""


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
    """

    splits: dict[str, datasets.Dataset]
    bad_examples: list[BadExample]
    fingerprint: str
    duplicates: int
    counts: dict[str, dict[str, int]]
    blank_captions: int = 0

    def __getitem__(self, split: str) -> datasets.Dataset:
        """The rows of a split.

        Raises:
            DataError: it was not loaded.
        """
        if split not in self.splits:
            raise DataError(f"there is no split {split!r}; loaded are {', '.join(self.splits)}.")
        return self.splits[split]


def load_splits(
    dataset: str,
    splits: Sequence[str],
    *,
    fractions: str | None = None,
    split_seed: int = 0,
    on_bad_example: str = "error",
    limit: Mapping[str, int] | int | None = None,
    console: Console | None = None,
) -> LoadedData:
    """Read, split, check and count a dataset, before any model is loaded.

    Args:
        dataset: any form of :func:`scst.data.sources.read_rows`.
        splits: the splits to return; images of others are not read.
        fractions: ``None`` for the dataset's own splits, or ``"80/10/10"`` (train/val/test).
        split_seed: seed of the fractions and of ``limit``.
        on_bad_example: ``"error"``, or ``"skip"`` to leave bad examples out and list them in
            ``bad_examples``.
        limit: at most so many images of every split, or of the splits named: a seeded random subset
            (rows are often sorted by category, so the first N are no sample). The images of a smaller limit
            are a subset of those of a larger one.
        console: where progress is drawn.

    Raises:
        DataError: the dataset, one of its examples or its splits cannot be used.
        RecipeError: an argument cannot be used.
    """
    check_policy(on_bad_example)
    limits = _limits(limit, splits)
    rows = read_rows(dataset)
    if fractions is None:
        chosen = _limited(select_splits(rows, splits, None, split_seed), limits, split_seed)
        inspected = {name: inspect_examples(part, console) for name, part in chosen.items()}
        bad = [example for inspection in inspected.values() for example in inspection.bad]
    else:
        # Inspected before the split: bad images must not count in exact fractions.
        everything = inspect_examples(rows, console)
        inspected = _split_inspection(everything, splits, fractions, split_seed, limits)
        bad = everything.bad
    if on_bad_example == "error":
        refuse_bad(bad)
    return _assemble(inspected, bad)


def load_dataset(
    dataset: str,
    *,
    splits: Sequence[str] | None = None,
    split_fractions: str | None = None,
    split_seed: int = 0,
    on_bad_example: str = "error",
    limit: Mapping[str, int] | int | None = None,
    console: Console | None = None,
) -> LoadedData:
    """Read and check a dataset; ``load_dataset("data/RISC")["train"]`` are the rows of a split.

    Args:
        dataset: RISC folder, parquet, saved dataset, hub id or ``embedded:scenes``.
        splits: which to read; None: all that the dataset declares, or that the fractions make.
        split_fractions: e.g. ``"80/10/10"`` (train/val/test); None: the dataset's own splits.
        split_seed, on_bad_example, limit, console: as of :func:`load_splits`.

    Raises:
        DataError: the dataset, one of its examples or its splits cannot be used.
        RecipeError: an argument cannot be used.
    """
    if splits is None and split_fractions is not None:
        splits = OWN_SPLITS[: len(parse_fractions(split_fractions))]
    if splits is None:
        splits = list(dict.fromkeys(name for name in read_rows(dataset)["split"][:] if name is not None))
    if not splits:
        raise DataError(f"{dataset!r} declares no splits: give split_fractions, e.g. '80/10/10'.")
    return load_splits(
        dataset,
        splits,
        fractions=split_fractions,
        split_seed=split_seed,
        on_bad_example=on_bad_example,
        limit=limit,
        console=console,
    )


def data_fingerprint(
    splits: Mapping[str, datasets.Dataset], content_hashes: Mapping[str, Sequence[str]]
) -> str:
    """Return the sha256 over split names, ids, references and image hashes, in row order."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        columns = (splits[name]["image_id"], splits[name]["references"], content_hashes[name])
        for row in zip(*columns, strict=True):
            digest.update(json.dumps([name, *row]).encode())
    return digest.hexdigest()


def _assemble(inspected: Mapping[str, Inspection], bad: list[BadExample]) -> LoadedData:
    rows = {name: inspection.rows for name, inspection in inspected.items()}
    hashes = {name: inspection.content_hashes for name, inspection in inspected.items()}
    for name, part in rows.items():
        if len(part) == 0:
            raise DataError(f"no usable example is left in the split {name!r}; {len(bad)} were bad.")
    check_leakage(rows, content_hashes=hashes)
    counts = {name: _counts(part, hashes[name]) for name, part in rows.items()}
    return LoadedData(
        splits={name: part.cast_column("image", datasets.Image()) for name, part in rows.items()},
        bad_examples=bad,
        fingerprint=data_fingerprint(rows, hashes),
        duplicates=sum(count["duplicates"] for count in counts.values()),
        counts=counts,
        blank_captions=sum(inspection.blank_captions for inspection in inspected.values()),
    )


def _counts(rows: datasets.Dataset, content_hashes: Sequence[str]) -> dict[str, int]:
    references = rows["references"][:]
    return {
        "images": len(rows),
        "captions": sum(map(len, references)),
        "distinct_captions": sum(len(set(captions)) for captions in references),
        "duplicates": len(content_hashes) - len(set(content_hashes)),
    }


def _split_inspection(
    everything: Inspection, splits: Sequence[str], fractions: str, seed: int, limits: Mapping[str, int]
) -> dict[str, Inspection]:
    """Cut one inspection of all rows into the named splits."""
    ids = everything.rows["image_id"][:]  # unique after the inspection
    hash_of = dict(zip(ids, everything.content_hashes, strict=True))
    chosen = select_splits(everything.rows, splits, fractions, seed, content_hashes=everything.content_hashes)
    parts = _limited(chosen, limits, seed)
    blank = dict.fromkeys(parts, 0) | {next(iter(parts)): everything.blank_captions}
    return {
        name: Inspection(part, [hash_of[key] for key in part["image_id"]], [], blank[name])
        for name, part in parts.items()
    }


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


def _limited(
    parts: Mapping[str, datasets.Dataset], limits: Mapping[str, int], seed: int
) -> dict[str, datasets.Dataset]:
    return {
        name: part.select(_seeded_subset(part["image_id"][:], limits[name], seed)) if name in limits else part
        for name, part in parts.items()
    }


def _seeded_subset(image_ids: Sequence[str], count: int, seed: int) -> list[int]:
    by_hash = sorted(range(len(image_ids)), key=lambda row: seeded_hash(seed, f"limit:{image_ids[row]}"))
    return sorted(by_hash[:count])
