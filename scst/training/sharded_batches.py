"""What both trainers do alike: batches that depend neither on the number of processes nor on a resumption."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from scst.distributed.sharded_loader import shared_loader


class SharedBatchesMixin:
    """Loaders for a ``transformers.Trainer``: N processes with b images share the batches of one with N * b.

    The order of the images is a function of seed and epoch. On one process nothing changes.
    """

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of every training batch."""
        sampler = self._get_train_sampler()
        if self.accelerator.num_processes == 1 or not isinstance(sampler, RandomSampler | SequentialSampler):
            return super().get_train_dataloader()
        return self._shared_loader(
            self.train_dataset,
            sampler,
            batch_size=self._train_batch_size,
            drop_last=self.args.dataloader_drop_last,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> DataLoader:
        """This process's share of every evaluation batch; each image is there once."""
        if self.accelerator.num_processes == 1:
            return super().get_eval_dataloader(eval_dataset)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._shared_loader(
            dataset, SequentialSampler(dataset), batch_size=self.args.eval_batch_size, drop_last=False
        )

    def _shared_loader(self, dataset: Any, sampler: Any, **loading: Any) -> DataLoader:
        args = self.args
        return shared_loader(
            dataset,
            sampler,
            self.data_collator,
            self.accelerator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **loading,
        )


class EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch it draws captions and prompts for; a resumed run asks for the same.

    Args:
        collator: has ``epoch``, where its batches depend on it.
    """

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first batch of an epoch is made."""
        self.collator.epoch = int(round(state.epoch or 0, 6))
