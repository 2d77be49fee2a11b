"""Stage 1: supervised training of a new adapter on human captions, with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from scst.data.collate import SFTCollator
from scst.models.prompts import IGNORED_LABEL, PromptEncoder
from scst.training.memory import PhaseMeter
from scst.training.non_finite import SaneStepsMixin
from scst.training.sharded_batches import EpochOfCollator, SharedBatchesMixin
from scst.training.validation import CaptionValidation, CaptionValidationMixin

SFT_ARGUMENTS = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
"""Our collator tokenises; TRL must neither prepare the dataset nor cut a sequence."""


class CaptionSFTTrainer(SaneStepsMixin, SharedBatchesMixin, CaptionValidationMixin, SFTTrainer):
    """Masked cross-entropy: the mean over all caption tokens of an optimizer step, ``<eos>`` included.

    TRL's trainer with three differences: our collator feeds it (TRL's cannot feed PaliGemma); the adapter of
    a quantised model is trained in fp32 instead of bf16, where small updates would be rounded away; and
    evaluation captions held-out images.

    Args:
        model: a PEFT model with a trainable adapter.
        args: training arguments (:class:`trl.SFTConfig` with :data:`SFT_ARGUMENTS`).
        train_dataset: rows with ``image``, ``references`` and ``image_id``.
        data_collator: makes supervised batches.
        processor: the checkpoint's processor.
        validation: caption metrics on held-out images, or None.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: SFTConfig,
        *,
        train_dataset: Any,
        data_collator: SFTCollator,
        processor: Any,
        validation: CaptionValidation | None = None,
        callbacks: Sequence[Any] | None = None,
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=validation.dataset if validation else None,
            data_collator=data_collator,
            processing_class=PromptEncoder.of(processor).processor,
            callbacks=[EpochOfCollator(data_collator), *(callbacks or [])],
        )
        self.validation = validation
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole optimizer step
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.phases = PhaseMeter(self.args.device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch; its peak memory is logged as ``memory_gb_loss``."""
        with self.phases.measure("loss") as usage:
            loss = super().training_step(*args, **kwargs)
        self._metrics["train"]["memory_gb_loss"].append(usage.peak_gb)
        return loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Held-out loss on the same human captions and one prompt at every evaluation, whatever the epoch.

        The mean over all their tokens: it depends neither on how they are cut into batches nor on the
        number of processes.
        """
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with self.data_collator.evaluating():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens = self.accelerator.reduce(self._held_out, reduction="sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / tokens
        return output

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
