"""Stage 1: supervised training of a new adapter on human captions, with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from scst.data.collate import SFTCollator
from scst.training.hooks import TrainerHooks
from scst.training.validation import CaptionValidation
from scst.types import IGNORED_LABEL


class CaptionSFTTrainer(TrainerHooks, SFTTrainer):
    """Masked cross-entropy: the mean over all caption tokens of an optimizer step, ``<eos>`` included.

    TRL's trainer with three differences: our collator feeds it (TRL's cannot feed PaliGemma); the adapter of
    a quantised model is trained in fp32 instead of bf16, where small updates would be rounded away; and
    evaluation captions held-out images.

    Args:
        model: a PEFT model with a trainable adapter.
        args: training arguments; TRL's own preparation of data is switched off.
        train_dataset: rows with ``image``, ``references`` and ``image_id``.
        data_collator: makes supervised batches.
        processor: the checkpoint's processor.
        validation: caption metrics on held-out images, or None.
        max_skipped_steps, callbacks: as of :class:`TrainerHooks`.
    """

    has_held_out_loss = True

    def __init__(
        self,
        model: torch.nn.Module,
        args: SFTConfig,
        *,
        train_dataset: Any,
        data_collator: SFTCollator,
        processor: Any,
        validation: CaptionValidation | None = None,
        max_skipped_steps: int = 10,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        # our collator tokenises: TRL must neither prepare the dataset nor cut a sequence
        args.max_length = None
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            processor=processor,
            validation=validation,
            max_skipped_steps=max_skipped_steps,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole optimizer step
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def micro_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch: ``seconds_loss`` and ``memory_gb_loss`` in the log."""
        self.metrics.count_images(len(inputs["labels"]) if (inputs["labels"] != IGNORED_LABEL).any() else 0)
        with self.metrics.timed("loss"):
            return super().micro_step(model, inputs, num_items)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Held-out loss: the mean over all tokens of the same captions at every evaluation.

        It depends neither on the epoch, nor on how the images are cut into batches, nor on the number of
        processes.
        """
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens = self.accelerator.reduce(self._held_out, reduction="sum").tolist()
        return output._replace(metrics={**(output.metrics or {}), f"{metric_key_prefix}_loss": loss / tokens})

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Add the losses of a held-out batch, and its trained tokens, to those of the evaluation."""
        inputs = self._prepare_inputs(inputs)
        tokens = (inputs["labels"] != IGNORED_LABEL).sum()
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=torch.ones_like(tokens))
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        self._held_out += torch.stack([loss / scale, tokens]).double()
        return None, None, None
