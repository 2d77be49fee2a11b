"""Batches of a stream of rows: each process takes its shard of every global batch, as of a finite dataset.

Every process reads the whole stream, but decodes its own images only. Each batch carries the position of the
stream behind it; whoever takes the batch moves the stream there, so that what a loader has read ahead does
not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from scst.data.streamed_rows import StreamedRows, decoded
from scst.distributed.sharded_loader import (
    Collator,
    PaddingExamples,
    ShardCollator,
    loader_of_shards,
    shard_of,
)

POSITION = "stream_position"
"""Key of a batch: the state of the stream's position behind it."""


class _Batches(IterableDataset[dict[str, Any]]):
    """Collated batches, without end; captions and prompts are drawn for the stream's pass."""

    def __init__(
        self, stream: StreamedRows, collator: Any, batch_size: int, drop_last: bool, shards: int, shard: int
    ):
        self.stream, self.collator = stream, collator
        self.batch_size, self.drop_last = batch_size, drop_last
        self.shards, self.shard = shards, shard

    def __iter__(self) -> Iterator[dict[str, Any]]:
        collate = ShardCollator(self.collator)
        pass_ = self.stream.position.pass_
        for rows, behind in self.stream.batches(self.batch_size, drop_last=self.drop_last):
            own = shard_of(range(len(rows)), self.shards, self.shard)
            mine = [decoded(rows[i]) for i in own]
            self.collator.epoch = pass_
            batch = collate(mine or PaddingExamples([decoded(rows[0])]))
            yield batch | {POSITION: behind | {"batch_pass": pass_}}
            pass_ = behind["pass_"]


def stream_loader(
    stream: StreamedRows,
    collator: Collator,
    accelerator: Accelerator,
    *,
    batch_size: int,
    drop_last: bool,
    **loading: Any,
) -> DataLoader[dict[str, Any]]:
    """Build a loader of this process's shard of every global batch of a stream.

    Args:
        stream: where the batches come from, from its position on.
        collator: makes a batch from rows; has ``epoch``.
        accelerator, batch_size, drop_last, loading: as of
            :func:`scst.distributed.sharded_loader.sharded_loader`; at most one worker.
    """
    batches = _Batches(
        stream,
        collator,
        batch_size * accelerator.num_processes,
        drop_last,
        accelerator.num_processes,
        accelerator.process_index,
    )
    loader: DataLoader[dict[str, Any]] = DataLoader(
        batches, batch_size=None, collate_fn=_unchanged, **loading
    )
    return loader_of_shards(loader, accelerator, dispatch_batches=False)


def _unchanged(batch: Any) -> Any:
    return batch
