"""Skips and counts steps with a loss or gradient that is not finite; too many in a row end the run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from scst.distributed.processes import any_process, gather_numbers
from scst.distributed.sharded_weights import local_values
from scst.errors import RunStopped


class Diverged(RunStopped):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class NonFiniteGuard:
    """Keeps NaN and infinity out of the adapter and out of the log.

    A step is skipped when the loss of any micro-batch, or the norm of the gradient, is NaN or infinite in any
    process: weights and optimizer state stay as they are, the learning-rate schedule continues. In fp16
    gradients overflow by design while the scaler looks for a scale; such steps count as skipped, but do not
    end a run as long as the scale is above 1.

    Args:
        max_skipped_steps: number of consecutive skipped steps that ends the run.

    Attributes:
        skipped_steps: number of skipped steps of the whole run.
        skipped_in_a_row: number of consecutive skipped steps, up to now.
    """

    def __init__(self, max_skipped_steps: int = 10):
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self._step_loss: torch.Tensor | None = None
        self._losses: list[float] = []
        self._all_losses = (0.0, 0)
        self._clipped: list[bool] = []

    def observe(self, loss: torch.Tensor) -> None:
        """Record the loss (a scalar) of one micro-batch. It stays on its device until the step ends."""
        loss = loss.detach().float()
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss

    def step_is_finite(self, grad_norm: float, max_grad_norm: float | None) -> bool:
        """Whether the current step may update the weights. Call once per optimizer step. Collective.

        Args:
            grad_norm: norm of the gradient before clipping.
            max_grad_norm: norm that the gradient was clipped to; None or 0: it was not clipped.
        """
        # The sum of the losses is finite only if all are: inf - inf is NaN, so they cannot cancel. Reading it
        # waits for the device, which is why it happens once per step.
        loss = float(self._step_loss) if self._step_loss is not None else 0.0
        self._step_loss = None
        bad_loss, bad_norm = any_process(not math.isfinite(loss), not math.isfinite(grad_norm))
        if not bad_loss:
            self._losses.append(loss)
            self._all_losses = (self._all_losses[0] + loss, self._all_losses[1] + 1)
        self._clipped.append(bool(max_grad_norm) and grad_norm > (max_grad_norm or math.inf))
        if not (bad_loss or bad_norm):
            self.skipped_in_a_row = 0
        return not (bad_loss or bad_norm)

    def skip(
        self, parameters: Iterable[torch.nn.Parameter], *, scaler: torch.amp.GradScaler | None = None
    ) -> bool:
        """Skip the step by removing all gradients: optimizers ignore a parameter without one.

        Args:
            parameters: parameters of the model.
            scaler: gradient scaler of fp16 training, or None.

        Returns:
            Whether so many consecutive steps were skipped that the run must end.
        """
        self.skipped_steps += 1
        if scaler is None or scaler.get_scale() <= 1.0:
            self.skipped_in_a_row += 1
        for parameter in parameters:
            parameter.grad = None
        return self.skipped_in_a_row >= self.max_skipped_steps

    def flush(self) -> dict[str, float]:
        """Numbers for the log about the steps since the last flush. Collective.

        ``loss`` is the mean over processes and over the steps with finite losses, NaN without such a step.
        ``grad_clipped`` is the share of steps whose gradient norm exceeded the limit. ``skipped_steps``
        counts the whole run.
        """
        clipped = {"grad_clipped": sum(self._clipped) / len(self._clipped)} if self._clipped else {}
        loss = _mean_over_processes(sum(self._losses), len(self._losses))
        self._losses, self._clipped = [], []
        return {"loss": loss, "skipped_steps": self.skipped_steps} | clipped

    def mean_loss(self) -> float:
        """The mean loss over all steps with finite losses since training began or was resumed. Collective."""
        return _mean_over_processes(*self._all_losses)

    def state_dict(self) -> dict[str, int]:
        """The number of skipped steps, which a resumed run continues to count."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from :meth:`state_dict`."""
        self.skipped_steps = state["skipped_steps"]


def weights_are_finite(model: torch.nn.Module) -> bool:
    """Whether no trainable weight is NaN or infinite, in any process. Collective."""
    trained = [local_values(p) for p in model.parameters() if p.requires_grad]
    (ruined,) = any_process(not all(bool(torch.isfinite(values).all()) for values in trained))
    return not ruined


def _mean_over_processes(total: float, steps: int) -> float:
    """Mean over steps and processes of summed losses; all processes have the same number of steps."""
    totals = [numbers[0] for numbers in gather_numbers([total])]
    return sum(totals) / len(totals) / steps if steps else math.nan
