"""Rewards of a step: asked for when captions are there, and by choice answered a step later."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from scst.trainer_stop import StopOnRewardErrorMixin
from scst.types import RewardOutput, Rollout, Sampling


@dataclass(frozen=True)
class AskedRewards:
    """A rollout whose rewards were asked for.

    Attributes:
        rollout: the captions.
        columns: a value per image and column.
        components: waits for the answer: reward name -> values of sampled, then of greedy captions.
        logged: names and values that rewards gave to ``log_metric``.
        is_spare: of a process without an image of its own (:mod:`scst.data.shares`): nothing is rewarded.
    """

    rollout: Rollout
    columns: dict[str, list[Any]]
    components: Callable[[], dict[str, list[float]]]
    logged: list[tuple[str, float]] = field(default_factory=list)
    is_spare: bool = False


class RewardsMixin(StopOnRewardErrorMixin):
    """Rewards for a trainer with a mixture; one step late where ``self.late_rollouts`` is set.

    Then a step samples, hands the captions to the rewards, and learns from the captions of the step before,
    whose rewards were computed beside everything that came between. Those captions were drawn from the policy
    before its last update, which the loss corrects (``scst.objective.losses.importance_ratios``).
    """

    late_rollouts: bool
    sampling: Sampling
    _metrics: dict[str, list[float]]
    _waiting: AskedRewards | None = None
    _beside: ThreadPoolExecutor | None = None

    def ask_rewards(
        self, rollout: Rollout, columns: dict[str, list[Any]], *, is_spare: bool = False
    ) -> AskedRewards:
        """Ask for the rewards of all sampled and greedy captions, in one call of every reward function."""
        num_samples = rollout.ended_by_eos.shape[1]
        logged: list[tuple[str, float]] = []
        repeated = {
            name: [value for value in values for _ in range(num_samples)] + list(values)
            for name, values in columns.items()
        }
        question = {
            "completions": [text for group in rollout.captions for text in group] + rollout.greedy_captions,
            "completion_ids": _token_ids(rollout),
            "ended_by_eos": rollout.ended_by_eos.flatten().tolist() + rollout.greedy_ended_by_eos.tolist(),
            "trainer_state": self.state,
            "log_metric": lambda name, value: logged.append((name, float(value))),
            "log_extra": None,
            **repeated,
        }

        def answer() -> dict[str, list[float]]:
            if is_spare:
                return {reward.name: [] for reward in self.reward.rewards}
            return self.reward.components(**question)

        if self.late_rollouts:
            self._beside = self._beside or ThreadPoolExecutor(1, "rewards")
            answer = self._beside.submit(answer).result
        return AskedRewards(rollout, columns, answer, logged, is_spare)

    def one_step_late(self, asked: AskedRewards) -> AskedRewards | None:
        """What was asked the step before; None at the first step."""
        before, self._waiting = self._waiting, asked
        return before

    def reward_captions(self, asked: AskedRewards) -> RewardOutput:
        """The rewards that were asked for.

        Raises:
            RewardError: on all processes when a reward of any fails, after a checkpoint was saved.
        """
        num_images, num_samples = asked.rollout.ended_by_eos.shape
        num_images = 0 if asked.is_spare else num_images
        mixed = self.rewards_of_all_processes(asked.components)
        for name, value in asked.logged:
            self._metrics[name].append(value)
        sampled_count = num_images * num_samples
        sampled, greedy = torch.tensor(mixed.total).split([sampled_count, num_images])
        components = {
            name: torch.tensor(values[:sampled_count]).view(num_images, num_samples)
            for name, values in mixed.components.items()
        }
        self._record_shares(mixed, num_images, num_samples)
        return RewardOutput(sampled.view(num_images, num_samples), greedy, components)


def _token_ids(rollout: Rollout) -> list[list[int]]:
    """Token ids of the sampled, then of the greedy captions, unpadded, as TRL passes them to rewards."""
    ids = [*rollout.completion_ids.flatten(0, 1).cpu(), *rollout.greedy_ids.cpu()]
    masks = [*rollout.completion_mask.flatten(0, 1).cpu(), *rollout.greedy_mask.cpu()]
    return [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
