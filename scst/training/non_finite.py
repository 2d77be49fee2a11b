"""Steps whose loss or gradient is no number: skipped, counted, and too many in a row end the run."""

from __future__ import annotations

import logging
from typing import Any

import torch

from scst.distributed.processes import flags_of_all_processes
from scst.errors import RunStopped
from scst.training.checkpointer import CheckpointMixin
from scst.training.checkpoints import newest_complete

logger = logging.getLogger(__name__)


class Diverged(RunStopped):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class SaneStepsMixin(CheckpointMixin):
    """Skips steps of a ``transformers.Trainer`` that would ruin the adapter; goes before it in the bases.

    A step is skipped when the loss of any micro-batch, or the norm of the gradient, is NaN or infinite:
    weights and optimizer state stay as they are, the learning-rate schedule goes on. In fp16 gradients
    overflow by design while the scaler looks for a scale; such steps count as skipped, but end no run as long
    as the scale is above 1. Under DeepSpeed the update is made within the backward pass: there the first such
    step ends the run, before a checkpoint could keep it.

    The log has ``skipped_steps`` (of the whole run), ``grad_norm`` (before clipping) and ``grad_clipped``,
    the share of steps since the last log whose gradient was longer than ``max_grad_norm``.
    """

    max_skipped_steps = 10
    skipped_steps = 0
    skipped_in_a_row = 0
    _losses_finite: torch.Tensor | None = None
    _clipped: list[bool] | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A micro-batch; remembers on the device whether its loss is finite."""
        loss = super().training_step(*args, **kwargs)
        finite = torch.isfinite(loss.detach()).all()
        self._losses_finite = finite if self._losses_finite is None else self._losses_finite & finite
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The last thing before the update: here a step that is not sane loses its gradients.

        Raises:
            Diverged: after ``max_skipped_steps`` in a row.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        losses, self._losses_finite = self._losses_finite, None
        norm = float(grad_norm if grad_norm is not None else 0.0)
        insane = not (torch.isfinite(torch.tensor(norm)) and (losses is None or bool(losses)))
        (insane,) = flags_of_all_processes(self.accelerator, insane)
        limit = self.args.max_grad_norm
        self._clipped = [*(self._clipped or []), bool(limit) and limit > 0 and norm > limit]
        if insane:
            self._skip(model)
        else:
            self.skipped_in_a_row = 0
        return grad_norm

    def _skip(self, model: torch.nn.Module) -> None:
        self.skipped_steps += 1
        scaler = self.accelerator.scaler
        if scaler is None or scaler.get_scale() <= 1.0:
            self.skipped_in_a_row += 1
        too_late = self.is_deepspeed_enabled and not self.args.fp16
        if self.skipped_in_a_row >= self.max_skipped_steps or too_late:
            self.callback_handler.on_train_end(self.args, self.state, self.control)  # bars and trackers close
            raise self._divergence()
        for parameter in model.parameters():
            parameter.grad = None  # optimizers pass over a parameter without gradient

    def _divergence(self) -> Diverged:
        step = self.state.global_step + 1
        newest = newest_complete(self.args.output_dir)
        return Diverged(
            f"loss or gradient was NaN or infinite in {self.skipped_in_a_row or 1} steps in a row, up to "
            f"step {step}. Last good checkpoint: {newest or 'none yet'}. Go on from there with --resume true "
            "and a smaller learning_rate or max_grad_norm, or precision: bf16 or fp32"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what became of the steps since the last log."""
        if "loss" in logs and self._clipped:
            logs = {**logs, "grad_clipped": sum(self._clipped) / len(self._clipped)}
            logs["skipped_steps"] = self.skipped_steps
            self._clipped = []
        super().log(logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any = None) -> None:
        """None in the middle of steps that are skipped: the last good one is from before them."""
        if self.skipped_in_a_row:
            logger.warning("no checkpoint at step %d: it was skipped", self.state.global_step)
        else:
            super()._save_checkpoint(model, trial)

    def values_to_save(self) -> dict[str, Any]:
        """The count: it goes on in a resumed run."""
        return super().values_to_save() | {"skipped_steps": self.skipped_steps}

    def restore_values(self, values: dict[str, Any]) -> None:
        """Back to :meth:`values_to_save`."""
        super().restore_values(values)
        self.skipped_steps = values["skipped_steps"]
