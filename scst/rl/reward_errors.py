"""What a run does when a reward fails: all processes stop together, after a checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rewards.errors import RewardError
from rewards.mixture import MixedRewards, RewardMixture
from scst.distributed.processes import message_of_all_processes
from scst.training.non_finite import SaneStepsMixin


class StopOnRewardErrorMixin(SaneStepsMixin):
    """Rewards for a trainer that has a mixture ``self.reward``.

    A :class:`RewardError` of one process stops all of them. Any other exception does not: the launcher ends
    the processes that are left. ``timeout_s`` of a reward belongs below the timeout of collective operations
    (10 minutes with NCCL), or the processes that wait give up first.
    """

    reward: RewardMixture

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
        message = message_of_all_processes(self.accelerator, None if error is None else str(error))
        if message is not None:
            self._save_before_stopping()
            raise error or RewardError(message)
        return self.reward.mixed(components, self._numbers_of_all_processes)

    def _numbers_of_all_processes(self, numbers: list[float]) -> list[list[float]]:
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.args.device)
        return self.accelerator.gather(mine).view(-1, len(numbers)).tolist()

    def _other_state(self) -> dict[str, Any]:
        return self.reward.moments.state_dict()

    def _restore_other_state(self, state: dict[str, Any]) -> None:
        self.reward.moments.load_state_dict(state)
