"""Rewards of a step: asked for when captions are there, and by choice answered a step later."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from scst.distributed.sharded_weights import unsharded
from scst.rl.reward_errors import StopOnRewardErrorMixin
from scst.types import PromptBatch, RewardOutput, Rollout, Sampling


@dataclass(frozen=True)
class AskedRewards:
    """A rollout whose rewards were asked for.

    Attributes:
        rollout: the captions.
        columns: a value per image and column.
        state: of the trainer when they were asked for.
        num_items: images of the optimizer step that it belongs to, over all processes.
        components: waits for the answer: reward name -> values of sampled, then of greedy captions.
        logged: names and values that rewards gave to ``log_metric``.
        is_spare: of a process without an image of its own (:mod:`scst.distributed.sharded_loader`): nothing is rewarded.
    """

    rollout: Rollout
    columns: dict[str, list[Any]]
    state: TrainerState
    num_items: torch.Tensor | None
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
        self,
        rollout: Rollout,
        columns: dict[str, list[Any]],
        num_items: torch.Tensor | None,
        *,
        is_spare: bool = False,
        state: TrainerState | None = None,
    ) -> AskedRewards:
        """Ask for the rewards of all sampled and greedy captions, in one call of every reward function."""
        state = state or (copy.copy(self.state) if self.late_rollouts else self.state)
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
            "trainer_state": state,
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
        return AskedRewards(rollout, columns, state, num_items, answer, logged, is_spare)

    def one_step_late(self, asked: AskedRewards) -> AskedRewards | None:
        """What was asked the step before; None at the first step."""
        before, self._waiting = self._waiting, asked
        return before

    def save_own(self, folder: Path) -> None:
        """The rollout that waits, so that a resumed run learns from it; its images are in the dataset."""
        super().save_own(folder)
        if (waiting := self._waiting) is None:
            return
        parts = {f.name: getattr(waiting.rollout, f.name) for f in fields(Rollout)}
        parts |= dict.fromkeys(("prompts", "image_features", "prompt_cache"))
        record = {
            "rollout": parts,
            "image_ids": [str(image_id) for image_id in waiting.columns["image_id"]],
            "prompts": waiting.columns["prompts"],
            "global_step": waiting.state.global_step,
            "num_items": waiting.num_items,
            "is_spare": waiting.is_spare,
        }
        torch.save(record, self._late_rollout_file(folder))

    def load_own(self, folder: Path) -> None:
        """Take up the rollout that waited."""
        super().load_own(folder)
        path = self._late_rollout_file(folder)
        if not (self.late_rollouts and path.is_file()):
            return
        record = torch.load(path, map_location=self.args.device, weights_only=True)
        rows = {str(image_id): row for row, image_id in enumerate(self.train_dataset["image_id"])}
        batch = self.data_collator.with_prompts(
            [self.train_dataset[rows[name]] for name in record["image_ids"]],
            record["prompts"],  # of the epoch that they were drawn in
        )
        columns = batch.pop("columns")
        prompts = PromptBatch(**batch).to(self.args.device)
        policy = self._policy(self.model)
        with torch.no_grad(), self.compute_loss_context_manager(), unsharded(self.model):
            features = None if policy.vision_is_trainable else policy.image_features(prompts.pixel_values)
        rollout = Rollout(**record["rollout"] | {"prompts": prompts, "image_features": features})
        state = dataclasses.replace(self.state, global_step=record["global_step"])
        asked = self.ask_rewards(
            rollout, columns, record["num_items"], is_spare=record["is_spare"], state=state
        )
        self._waiting = asked
        self._logprobs_checked = True  # the policy has changed since it sampled

    def _late_rollout_file(self, folder: Path) -> Path:
        return folder / f"late_rollout_{self.args.process_index}.pt"

    def _other_state(self) -> dict[str, Any]:
        return {"rewards": super()._other_state(), "waiting": self._waiting}

    def _restore_other_state(self, state: dict[str, Any]) -> None:
        super()._restore_other_state(state["rewards"])
        self._waiting = state["waiting"]

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
