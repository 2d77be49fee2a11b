"""The references of training images as rewards are given them, and their document frequencies."""

from __future__ import annotations

import logging
from typing import Any

import datasets

from rewards.errors import RewardError
from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.data.cache_folder import CacheFolder
from scst.data.columns import values_of
from scst.data.memory import release_memory
from scst.data.visible import visible

logger = logging.getLogger(__name__)

REMEMBERED_FROM = 2000
"""Rows; the frequencies of fewer are counted faster than they are read."""


class ReferenceColumns:
    """The columns ``references`` and ``image_id`` of a dataset: what ``setup`` of a reward is given.

    Args:
        rows: rows with both columns.

    Attributes:
        column_names: their names.
    """

    column_names = ("references", "image_id")

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows.select_columns(list(self.column_names))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Any:
        return self.rows[name]

    def document_frequencies(self, eos: str, split: str = "train") -> DocumentFrequencies:
        """The table of the references, counted once for all runs and processes.

        Args:
            eos, split: as of ``DocumentFrequencies.from_references``.
        """
        cache = CacheFolder(f"references:{self.rows._fingerprint}:{split}")
        name = f"frequencies-{eos}.npz"
        is_large = len(self.rows) >= REMEMBERED_FROM
        if is_large and cache.file(name).is_file():
            try:
                return DocumentFrequencies.load_arrays(cache.file(name))
            except (OSError, ValueError) as error:
                logger.warning("the document frequencies are counted again: %s", visible(str(error)))
        references = values_of(self.rows["references"])
        table = DocumentFrequencies.from_references(references, eos=eos, split=split)
        if is_large:
            cache.write(name, table.save_arrays)
            release_memory()
        return table


class StreamedReferences:
    """What ``setup`` of a reward is given where training rows are streamed: no columns to look at."""

    column_names = ReferenceColumns.column_names

    def __getitem__(self, name: str) -> Any:
        raise RewardError(
            f"it asks for the {name} of all training images, which a stream does not have before the first "
            "step: give document frequencies that were counted before (kwargs: {frequencies: FILE}; scst "
            "prepare document-frequencies), or a reward without setup"
        )
