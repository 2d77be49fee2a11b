"""Splits by image: the dataset's own, or seeded fractions; and the check that no image is in two of them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from scst.data.columns import values_of
from scst.data.fractions import parse_fractions
from scst.data.images import content_hash
from scst.errors import DataError

FRACTION_SPLITS = ("train", "val", "test")
VAL_ALIASES = ("val", "validation", "valid", "dev")
SHOWN_LEAKS = 5


def select_splits(
    rows: Dataset,
    names: Sequence[str],
    fractions: str | None,
    seed: int,
    *,
    content_hashes: Sequence[str] | None = None,
) -> dict[str, Dataset]:
    """Return the rows of each named split, in the rows' own order.

    Args:
        rows: rows of :func:`scst.data.sources.read_rows`.
        names: split names; ``val``, ``validation``, ``valid`` and ``dev`` mean the same, and ``train+val`` is
            both together.
        fractions: ``None`` for the dataset's own splits, or percentages for train/val/test such as
            ``"80/10/10"`` (two numbers: train/val). Then which images go where depends on the seed and the
            image ids, not on row order, sizes are exact, and images with the same content stay together.
        seed: of the fractions.
        content_hashes: one per row when already known; otherwise images are read and hashed for fractions.

    Raises:
        DataError: a split is not there, or is empty.
        RecipeError: the fractions cannot be used.
    """
    numbers = split_rows(rows, names, fractions, seed, content_hashes=content_hashes)
    return {name: rows.select(numbers[name]) for name in names}


def split_rows(
    rows: Dataset,
    names: Sequence[str],
    fractions: str | None,
    seed: int,
    *,
    content_hashes: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return the numbers of the rows of each named split, ascending; arguments as of select_splits."""
    if fractions is None:
        splits = _column(rows, "split")
        return {name: _together(name, lambda part: _own_split(splits, part)) for name in names}
    shares = parse_fractions(fractions)
    hashes = content_hashes or hash_images(rows)
    assigned = assign_fractions(_column(rows, "image_id").to_pylist(), hashes, shares, seed)
    return {name: _together(name, lambda part: _fraction_split(assigned, part, fractions)) for name in names}


def _column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """A column as Arrow, without a Python object per row."""
    return rows.select_columns(name).with_format("arrow")[name][:]


def _together(name: str, find: Callable[[str], np.ndarray]) -> np.ndarray:
    """Rows of a split, or of several joined by ``+``, in the rows' own order."""
    return np.unique(np.concatenate([find(part) for part in name.split("+")]))


def check_leakage(
    splits: Mapping[str, Dataset | Mapping[str, Sequence[str]]],
    *,
    content_hashes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Check that no image is in two splits, by id and by the sha256 of its encoded bytes.

    Args:
        splits: rows per split; with hashes known, their column ``image_id`` is enough.
        content_hashes: per split, one per row, when already known.

    Raises:
        DataError: an image is in two splits; up to five examples are listed.
    """
    leaks = _shared({name: (rows["image_id"], rows["image_id"]) for name, rows in splits.items()})
    examples = [f"image_id {key} in {' and '.join(places)}" for key, places in leaks.items()]
    hashes = content_hashes or {name: hash_images(rows) for name, rows in splits.items()}
    same = _shared({name: (hashes[name], rows["image_id"]) for name, rows in splits.items()})
    for places in same.values():
        if len(set(places.values())) > 1:  # with one id it is listed above
            examples.append("same picture: " + " = ".join(f"{key} in {name}" for name, key in places.items()))
    if examples:
        shown = "\n  ".join(examples[:SHOWN_LEAKS])
        raise DataError(
            f"{len(examples)} images are in more than one split, so evaluation would be on training images:\n"
            f"  {shown}\nRemove them from one of the splits, or use fractions such as 80/10/10, which keep "
            "equal images together."
        )


def hash_images(rows: Dataset) -> list[str]:
    """Return the content hash of every row's image, ``""`` where it cannot be read."""
    batches = rows.select_columns("image").iter(batch_size=256)
    return [content_hash(image) for batch in batches for image in batch["image"]]


def assign_fractions(
    image_ids: Sequence[str], content_hashes: Sequence[str], shares: Sequence[int], seed: int
) -> dict[str, list[int]]:
    """Assign row numbers to ``train``, ``val`` and ``test`` by share.

    Rows with the same content form a group, named by its smallest id (so that a collection splits alike at
    every resolution). Groups in the order of their seeded hash fill train, then val, then test; a group too
    large for what is left of a split goes to the next, which keeps the counts exact whenever single images
    can fill the gap.

    Raises:
        DataError: there are too few images for the shares.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, (image_id, digest) in enumerate(zip(image_ids, content_hashes, strict=True)):
        groups[digest or f"unreadable:{image_id}"].append(row)
    free = _exact_counts(len(image_ids), shares)
    assigned: dict[str, list[int]] = {name: [] for name in free}
    names = {digest: min(image_ids[row] for row in group) for digest, group in groups.items()}
    for digest in sorted(groups, key=lambda digest: (seeded_hash(seed, names[digest]), digest)):
        group = groups[digest]
        place = next((name for name in free if free[name] >= len(group)), max(free, key=free.__getitem__))
        free[place] -= len(group)
        assigned[place] += group
    return {name: sorted(group) for name, group in assigned.items()}


def seeded_hash(seed: int, key: str) -> str:
    """Return a hash that orders keys at random, the same for a seed on every machine."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _exact_counts(total: int, shares: Sequence[int]) -> dict[str, int]:
    """Round shares of a total by largest remainder, so that the counts add up to it."""
    counts = [total * share // 100 for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -(total * shares[i] % 100))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    if min(counts) == 0:
        raise DataError(
            f"{total} images are too few for the fractions {'/'.join(map(str, shares))}: a split is empty."
        )
    return dict(zip(FRACTION_SPLITS, counts, strict=False))


def count_splits(rows: Dataset) -> dict[str, int]:
    """Split that the rows declare ("" for none) -> number of rows."""
    return _counts_of(_column(rows, "split"))


def _counts_of(splits: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in splits.value_counts().to_pylist()}


def _own_split(splits: pa.ChunkedArray, name: str) -> np.ndarray:
    counts = _counts_of(splits)
    wanted = [name] if name in counts else list(VAL_ALIASES if name in VAL_ALIASES else [name])
    indices = np.flatnonzero(pc.is_in(splits, value_set=pa.array(wanted, splits.type)).to_numpy())
    if len(indices):
        return indices
    if not any(counts):
        raise DataError(
            f"there is no split {name!r}: the dataset does not name splits. Add a split column, or split "
            "it by fractions such as 80/10/10."
        )
    listing = ", ".join(f"{value or '(none)'} ({count})" for value, count in counts.items())
    raise DataError(f"there is no split {name!r}; the dataset has {listing}. Use one of these, or fractions.")


def _fraction_split(assigned: Mapping[str, list[int]], name: str, fractions: str) -> np.ndarray:
    canonical = "val" if name in VAL_ALIASES else name
    if canonical not in assigned:
        raise DataError(f"there is no split {name!r}: the fractions {fractions} make {', '.join(assigned)}.")
    return np.array(assigned[canonical], dtype=np.int64)


def _shared(columns: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, dict[str, str]]:
    """Map each key found in two splits to ``{split: image_id}``; columns are split -> (keys, image ids).

    The keys of the largest split are looked up and not kept: it is by far the largest.
    """
    by_size = sorted(columns, key=lambda name: len(columns[name][0]))
    seen: set[str] = set()
    twice: set[str] = set()
    for name in by_size:
        keys = columns[name][0]
        twice.update(key for key in values_of(keys) if key and key in seen)
        seen.update(values_of(keys) if name != by_size[-1] else ())
    places: dict[str, dict[str, str]] = {}
    for name, (keys, ids) in columns.items() if twice else ():
        for key, image_id in zip(values_of(keys), values_of(ids), strict=True):
            if key in twice:
                places.setdefault(key, {}).setdefault(name, image_id)
    return places
