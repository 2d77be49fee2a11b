"""One global batch for any number of processes: each takes its shard, and no image is in two shards.

``accelerate`` deals out whole batches and fills up the end of an epoch with images from its beginning. Here
the batches are those that one process would make, and every process takes a part of each. An epoch's last
batch may hold fewer images than there are processes; a process without any then gets a *padding example*: it
takes part in every collective operation with it, and the example weighs nothing.
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
"""Key of a batch whose images weigh nothing; its process had none of its own."""


class PaddingExamples(list):
    """Indices or rows of a batch that weighs nothing."""


class BatchShards(BatchSampler):
    """The shard of one process of every batch: consecutive parts whose sizes differ by one at most.

    Args:
        batch_sampler: the batches that one process would make.
        num_processes: how many shards a batch is cut into.
        process_index: which shard this is.
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
    """One of ``num_shards`` consecutive parts of a sequence; together they are the sequence."""
    first, end = (-(-len(items) * number // num_shards) for number in (shard, shard + 1))  # rounded up
    return items[first:end]


def map_across_ranks(work: Callable[[range], list[Result]], count: int) -> list[Result]:
    """Results of ``work`` on numbers 0 to ``count`` - 1, in their order, on every process.

    Args:
        work: called once with the numbers of this process, if it has any; gives a result for each.
        count: how many there are.
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
    """A dataset that passes on whether the rows asked for are padding examples."""

    def __init__(self, dataset: IndexedRows):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = [self.dataset[index] for index in indices]
        return PaddingExamples(rows) if isinstance(indices, PaddingExamples) else rows


class _Collator:
    """Calls the stage's collator. No label of a padding example is trained; without labels it is marked."""

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        if not isinstance(rows, PaddingExamples):
            return batch
        if "labels" in batch:
            return batch | {"labels": torch.full_like(batch["labels"], IGNORED_LABEL)}
        return batch | {PADDING_EXAMPLE: True}


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
    """A loader of this process's shard of every global batch.

    Args:
        dataset: rows by index.
        sampler: order of the rows; a random one is made the same on all processes, epoch by epoch.
        collator: makes a batch of rows.
        accelerator: knows the processes.
        batch_size: images of one process; the global batch is this times their number.
        drop_last: leave out a last batch that is not full.
        loading: arguments of ``torch.utils.data.DataLoader``.
    """
    processes = accelerator.num_processes
    batches = BatchSampler(sampler, batch_size * processes, drop_last)
    loader: DataLoader[dict[str, Any]] = DataLoader(
        _Rows(dataset),
        batch_sampler=BatchShards(batches, processes, accelerator.process_index),
        collate_fn=_Collator(collator),
        **loading,
    )
    prepared = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,  # the batches are cut into shards already
        process_index=0,
        put_on_device=True,
        use_seedable_sampler=True,
        data_seed=accelerator.dataloader_config.data_seed,
        non_blocking=accelerator.non_blocking,
    )
    prepared._drop_last = True  # to `gather_for_metrics`: there is nothing to remove
    return prepared
