"""Splits every global batch among processes: each loads its shard, and no image is in two shards.

``accelerate`` hands whole batches to processes and fills the last ones with images from the start of the
epoch. Here the batches are those that a single process would make, and every process takes a part of each.
The last batch of an epoch may hold fewer images than there are processes. A process without an image then
gets a *padding example*: with it the process takes part in every collective operation, at weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from scst.types import IGNORED_LABEL

Items = TypeVar("Items", list[int], range)
Result = TypeVar("Result")
Collator = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

PADDING_EXAMPLE = "is_padding_example"
"""Key that marks a batch of a padding example; its images have weight zero."""


class PaddingExamples(list):
    """Indices or rows of a padding example. The type is how the mark travels from sampler to collator."""


class BatchShards(BatchSampler):
    """Yields one process's shard of every batch. Shards are consecutive; their sizes differ by one at most.

    Args:
        batch_sampler: yields the batches that a single process would make.
        num_processes: number of shards per batch.
        process_index: which shard to yield.
    """

    def __init__(self, batch_sampler: BatchSampler, num_processes: int, process_index: int):
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.batch_size = batch_sampler.batch_size
        self.drop_last = batch_sampler.drop_last
        self.num_shards = num_processes
        self.shard = process_index

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batch_sampler:
            yield shard_of(batch, self.num_shards, self.shard) or PaddingExamples(batch[:1])


def shard_of(items: Items, num_shards: int, shard: int) -> Items:
    """One of ``num_shards`` consecutive parts of a sequence; joined, the parts are the sequence."""
    first, end = (-(-len(items) * number // num_shards) for number in (shard, shard + 1))  # rounded up
    return items[first:end]


def map_across_ranks(work: Callable[[range], list[Result]], count: int) -> list[Result]:
    """Split ``range(count)`` among the processes, call ``work``, and return all results on every process.

    Args:
        work: called once with the numbers of this process, unless it has none; returns a result for each.
        count: length of the whole range.

    Returns:
        ``count`` results in the order of the numbers. Collective.
    """
    state = PartialState()
    numbers = shard_of(range(count), state.num_processes, state.process_index)
    results = work(numbers) if numbers else []
    return gather_object(results) if state.num_processes > 1 else results


class IndexedRows(Protocol):
    """Rows by number, such as a ``datasets.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class _Rows(Dataset[dict[str, Any]]):
    """A dataset whose rows are :class:`PaddingExamples` when the requested indices are."""

    def __init__(self, dataset: IndexedRows):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = [self.dataset[index] for index in indices]
        return PaddingExamples(rows) if isinstance(indices, PaddingExamples) else rows


class ShardCollator:
    """Calls the stage's collator, and gives padding examples no weight.

    Labels are set to the ignored value; a batch without labels is marked with ``PADDING_EXAMPLE``.
    """

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        if not isinstance(rows, PaddingExamples):
            return batch
        if "labels" in batch:
            return batch | {"labels": torch.full_like(batch["labels"], IGNORED_LABEL)}
        return batch | {PADDING_EXAMPLE: True}


def loader_of_shards(
    loader: DataLoader[dict[str, Any]], accelerator: Accelerator, **settings: Any
) -> DataLoader[dict[str, Any]]:
    """Accelerate's loader around one whose batches are this process's shards already; it splits no more.

    Args:
        loader: gives the shards.
        accelerator: gives the device.
        settings: further arguments of ``accelerate.data_loader.prepare_data_loader``.
    """
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        non_blocking=accelerator.non_blocking,
        **settings,
    )


def sharded_loader(
    dataset: IndexedRows,
    sampler: Sampler[int],
    collator: Collator,
    accelerator: Accelerator,
    *,
    batch_size: int,
    drop_last: bool,
    **loading: Any,
) -> DataLoader[dict[str, Any]]:
    """Build a loader of this process's shard of every global batch.

    Args:
        dataset: rows by index.
        sampler: order of the rows; a random one is seeded alike on all processes, anew every epoch.
        collator: makes a batch from rows.
        accelerator: gives the number of processes, the index of this one and its device.
        batch_size: images per process; the global batch is this times the number of processes.
        drop_last: leave out a last batch that is not full.
        loading: further arguments of ``torch.utils.data.DataLoader``.
    """
    processes = accelerator.num_processes
    batches = BatchSampler(sampler, batch_size * processes, drop_last)
    loader: DataLoader[dict[str, Any]] = DataLoader(
        _Rows(dataset),
        batch_sampler=BatchShards(batches, processes, accelerator.process_index),
        collate_fn=ShardCollator(collator),
        **loading,
    )
    prepared = loader_of_shards(
        loader, accelerator, use_seedable_sampler=True, data_seed=accelerator.dataloader_config.data_seed
    )
    prepared._drop_last = True  # else `gather_for_metrics` removes rows from the last batch as duplicates
    return prepared
