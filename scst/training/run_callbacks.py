"""Callbacks that every run of this project has."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainingArguments


class SetEpoch(TrainerCallback):
    """Tells the collator which epoch it draws captions and prompts for; a resumed run asks for the same."""

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first batch of an epoch is made."""
        self.collator.epoch = int(round(state.epoch or 0, 6))


class Intervals(TrainerCallback):
    """Logging, evaluation and saving at the intervals of the arguments.

    The library goes on with those that the checkpoint of a resumed run was made with.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """After the state of a checkpoint was loaded."""
        state.compute_steps(args, state.max_steps)
