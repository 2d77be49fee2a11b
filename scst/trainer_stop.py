"""What a run does when a reward fails: all processes stop together, after a checkpoint to resume from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rewards.errors import RewardError
from rewards.mixture import MixedRewards, RewardMixture


@dataclass(frozen=True)
class _StepEnd:
    """What a checkpoint of the last completed step holds and the rewards of the next one change."""

    generators: dict[str, Any]
    reward_statistics: dict[str, Any]


class StopOnRewardErrorMixin:
    """Rewards for a trainer that has a mixture ``self.reward``.

    A :class:`RewardError` of one process stops all of them. Any other exception does not: the launcher ends
    the processes that are left. ``timeout_s`` of a reward belongs below the timeout of collective operations
    (10 minutes with NCCL), or the processes that wait give up first.
    """

    reward: RewardMixture
    _step_end: _StepEnd | None = None

    def rewards_of_all_processes(self, components_here: Callable[[], dict[str, list[float]]]) -> MixedRewards:
        """The mixture's answer to one batch per process.

        Args:
            components_here: gives the unweighted rewards of this process (:meth:`RewardMixture.components`).

        Raises:
            RewardError: on all processes when a reward of one fails, after a checkpoint was saved.
        """
        components, error = {}, None
        try:
            components = components_here()
        except RewardError as raised:
            error = raised
        error = self._error_of_all_processes(error)
        if error is not None:
            self._save_before_stopping()
            raise error
        return self.reward.mixed(components, self._numbers_of_all_processes)

    def _error_of_all_processes(self, error: RewardError | None) -> RewardError | None:
        """This process' error, or that of the first process that has one: nobody may wait for who stopped."""
        if self.accelerator.num_processes == 1:
            return error
        failed = torch.tensor(float(error is not None), device=self.args.device)
        if not self.accelerator.reduce(failed, reduction="sum").item():
            return None
        messages = gather_object([str(error or "")])
        process = next(i for i, message in enumerate(messages) if message)
        return error or RewardError(f"{messages[process]} (in process {process})")

    def _numbers_of_all_processes(self, numbers: list[float]) -> list[list[float]]:
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.args.device)
        return self.accelerator.gather(mine).view(-1, len(numbers)).tolist()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The end of an optimizer step: remember what a checkpoint written here holds."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._step_end = _StepEnd(_generator_states(), self.reward.state_dict())

    def _save_before_stopping(self) -> None:
        """A checkpoint of the last completed optimizer step, as if it had been written at its end.

        Gradients of a step that was not completed are dropped. The own state of rewards (``save_state``) is
        saved as the failing call left it. Nothing is saved where the checkpoint exists, or no step was made.
        """
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        is_saved = (Path(self.args.output_dir) / name / TRAINER_STATE_NAME).is_file()
        self.accelerator.wait_for_everyone()  # before one of them begins to write
        if self._step_end is not None and not is_saved:
            _restore_generators(self._step_end.generators)
            self.reward.load_state_dict(self._step_end.reward_statistics)
            self._save_checkpoint(self.model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)  # bars and trackers close


def _generator_states() -> dict[str, Any]:
    """States of the global random number generators, which rewards may draw from."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
