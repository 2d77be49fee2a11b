"""A dataset opened for training: its rows, what identifies them, and what was remembered of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from scst.data.cache_folder import CacheFolder, stamp
from scst.data.image_files import ImageFiles, image_files
from scst.data.remembered_checks import RememberedChecks
from scst.data.sources import find_form, open_rows, source_files
from scst.data.splits import seeded_hash
from scst.data.validate import ImageMemory

SAMPLED_IMAGES = 1000
"""Images of a split that ``check: sampled`` decodes."""
CHECKS = 1
"""Of all checks of rows together; another number makes what was remembered of them void."""


@dataclass(frozen=True)
class DataSource:
    """A dataset in any form.

    Attributes:
        rows: of all splits; images stay encoded.
        cache: its folder between runs.
        signature: of the files that the rows come from, by path, size and modification time; ``""`` for the
            embedded scenes, of which nothing is remembered.
        changed_ns: when the last of these files was changed.
        folder: that links of images must not lead out of; None for a dataset without a folder.
    """

    rows: datasets.Dataset
    cache: CacheFolder
    signature: str
    changed_ns: int
    folder: Path | None

    @classmethod
    def open(cls, dataset: str) -> DataSource:
        """Open a dataset.

        Raises:
            DataError: as of :func:`scst.data.sources.read_rows`.
        """
        form, rows = find_form(dataset), open_rows(dataset)
        files = source_files(dataset) or [Path(file["filename"]) for file in rows.cache_files]
        stamps = [(os.path.abspath(file), *stamp(file)) for file in files]
        signature = hashlib.sha256(f"{CHECKS}:{stamps}".encode("utf-8", "surrogateescape")).hexdigest()
        path = Path(dataset).expanduser()
        return cls(
            rows,
            CacheFolder(dataset),
            signature if stamps and form != "embedded" else "",
            max((changed for *_, changed in stamps), default=0),
            None if form in ("hub", "embedded") else path if path.is_dir() else path.parent,
        )

    def images(self, numbers: np.ndarray) -> ImageFiles:
        """The image files of some rows; none is read."""
        return image_files(self.rows, numbers, self.signature, self.folder)

    def memory(self, numbers: np.ndarray, images: ImageFiles, check: str, seed: int) -> ImageMemory | None:
        """What the check of some rows may know beforehand; None where nothing is remembered."""
        if not self.signature:
            return None
        sample = None
        if check == "sampled":
            ids = self.select(numbers).select_columns("image_id")["image_id"][:]
            sample = seeded_subset(ids, SAMPLED_IMAGES, seed, "check")
        return ImageMemory(RememberedChecks(self.cache), images, check != "full", sample)

    def select(self, numbers: np.ndarray) -> datasets.Dataset:
        """Some rows. Rows in a row are a slice, which is read faster than a selection."""
        first, count = int(numbers[0]), len(numbers)
        if count == len(self.rows):
            return self.rows
        if int(numbers[-1]) - first + 1 == count and (np.diff(numbers) == 1).all():
            return self.rows.select(range(first, first + count))
        return self.rows.select(numbers)


def seeded_subset(image_ids: list[str], count: int, seed: int, purpose: str) -> np.ndarray:
    """Numbers of a random subset, ascending; that of a smaller ``count`` is part of that of a larger one."""
    ranks = [seeded_hash(seed, f"{purpose}:{image_id}") for image_id in image_ids]
    return np.sort(np.argsort(np.array(ranks), kind="stable")[:count])
