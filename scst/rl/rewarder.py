"""From captions to advantages: rewards of a step, minus the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainerState

from rewards.errors import RewardError
from rewards.mixture import MixedRewards, RewardMixture
from scst.distributed.processes import first_message, gather_numbers
from scst.objective.advantages import advantage_magnitudes, compute_advantages
from scst.rl.observed_state import observed_state
from scst.rl.reward_log import logged_by_rewards
from scst.training.step_metrics import Deviation, Mean, Statistic
from scst.types import ImageFeatures, PromptBatch, RewardOutput, Rollout

Columns = dict[str, list[Any]]
"""A value per image by name of the column."""

Recall = Callable[[Sequence[str], Sequence[str]], tuple[PromptBatch, Columns, ImageFeatures | None]]
"""(image ids, instructions) -> the prompts, the columns and the image features of those training images."""


@dataclass(frozen=True)
class RewardedRollout:
    """What is learnt from.

    Attributes:
        rollout: captions of B images.
        columns: a value per image and column.
        rewards: of its captions.
        advantages: (B, K); 0 where no reward had an opinion, and of padding examples.
        num_images: images of the optimizer step it was sampled in, over all micro-batches and processes.
        is_padding: its images weigh nothing (:mod:`scst.distributed.sharded_loader`).
        metrics: for the log.
        logged: what rewards gave to ``log_metric``, for the log.
    """

    rollout: Rollout
    columns: Columns
    rewards: RewardOutput
    advantages: torch.Tensor
    num_images: int
    is_padding: bool
    metrics: dict[str, Statistic]
    logged: dict[str, Statistic]


@dataclass(frozen=True)
class PendingRewards:
    """A rollout whose rewards are being computed.

    Attributes:
        rollout, columns, num_images, is_padding: as of :class:`RewardedRollout`.
        state: of the trainer when it was sampled.
        components: waits for the answer: reward name -> values of the sampled, then of the greedy captions.
        logged: names and values that rewards gave to ``log_metric``.
    """

    rollout: Rollout
    columns: Columns
    num_images: int
    is_padding: bool
    state: TrainerState
    components: Callable[[], dict[str, list[float]]]
    logged: list[tuple[str, float]] = field(default_factory=list)


class Rewarder:
    """Calls the reward mixture on the captions of a step and compares with the baseline.

    With ``one_step_off_policy`` a step hands its captions to the rewards and learns from those of the step
    before, whose rewards were computed beside everything in between. Those captions were drawn from the
    policy before its last update, which the loss corrects (``scst.objective.losses.importance_ratios``).

    Args:
        mixture: what is optimised; already set up.
        baseline: a name in ``scst.objective.advantages.BASELINES``.
        one_step_off_policy: learn from the captions of the micro-batch before.
        recall: rebuilds the prompts of a pending rollout when a run is resumed; needed with
            ``one_step_off_policy``.
    """

    def __init__(
        self,
        mixture: RewardMixture,
        baseline: str = "greedy",
        *,
        one_step_off_policy: bool = False,
        recall: Recall | None = None,
    ):
        self.mixture = mixture
        self.baseline = baseline
        self.one_step_off_policy = one_step_off_policy
        self.recall = recall
        self._pending: PendingRewards | None = None
        self._beside = ThreadPoolExecutor(1, "rewards") if one_step_off_policy else None

    def __call__(
        self,
        rollout: Rollout,
        columns: Columns,
        state: TrainerState,
        *,
        num_images: int,
        is_padding: bool = False,
    ) -> RewardedRollout | None:
        """Reward a rollout; returns it, or with ``one_step_off_policy`` the one before (None at first).

        Args:
            rollout: captions of B images.
            columns: a value per image and column: ``image_id``, ``references``, ``prompts``, ...
            state: of the trainer; rewards see it as ``trainer_state``.
            num_images: of the optimizer step, over all micro-batches and processes.
            is_padding: the images weigh nothing: no reward is asked.

        Raises:
            RewardError: on all processes when a reward of any process fails. Any other exception ends this
                process alone, and the launcher ends the others. ``timeout_s`` of a reward belongs below the
                timeout of collective operations (10 minutes with NCCL), or those that wait give up first.
        """
        asked = self._ask(rollout, columns, state, num_images, is_padding)
        if self.one_step_off_policy:
            pending, self._pending = self._pending, asked
            return None if pending is None else self._answered(pending)
        return self._answered(asked)

    def _ask(
        self, rollout: Rollout, columns: Columns, state: TrainerState, num_images: int, is_padding: bool
    ) -> PendingRewards:
        """Ask for the rewards of all captions in one call of every reward function."""
        logged: list[tuple[str, float]] = []
        state = observed_state(state)  # it changes meanwhile, and no reward may change it
        completions = [text for group in rollout.captions for text in group] + rollout.greedy_captions

        def answer() -> dict[str, list[float]]:
            if is_padding:
                return {reward.name: [] for reward in self.mixture.rewards}
            return self.mixture.components(
                completions=completions,
                trainer_state=state,
                log_metric=lambda name, value: logged.append((str(name), float(value))),
                log_extra=None,
                **_per_completion(rollout, columns),
            )

        if self._beside is not None:
            answer = self._beside.submit(answer).result
        return PendingRewards(rollout, columns, num_images, is_padding, state, answer, logged)

    def _answered(self, pending: PendingRewards) -> RewardedRollout:
        num_images, num_samples = pending.rollout.ended_by_eos.shape
        counted = 0 if pending.is_padding else num_images
        mixed = self.mixture.mixed(self._components(pending), gather_numbers)
        sizes = [counted * num_samples, counted]
        sampled, greedy = torch.tensor(mixed.total).split(sizes)
        components = {
            name: torch.tensor(values[: sizes[0]]).view(counted, num_samples)
            for name, values in mixed.components.items()
        }
        rewards = RewardOutput(sampled.view(counted, num_samples), greedy, components)
        advantages = compute_advantages(self.baseline, rewards.sampled, rewards.greedy)
        metrics = {
            **reward_metrics(rewards, advantages),
            **self._shares(mixed, counted, num_samples),
        }
        if pending.is_padding:  # it is scored all the same where processes wait within passes
            advantages = torch.zeros(num_images, num_samples)
        return RewardedRollout(
            pending.rollout,
            pending.columns,
            rewards,
            advantages,
            pending.num_images,
            pending.is_padding,
            {} if pending.is_padding else metrics,
            {} if pending.is_padding else logged_by_rewards(pending.logged, counted),
        )

    def _components(self, pending: PendingRewards) -> dict[str, list[float]]:
        components, error = {}, None
        try:
            components = pending.components()
        except RewardError as raised:
            error = raised
        message = first_message(None if error is None else str(error))
        if message is not None:
            raise error or RewardError(message)
        return components

    def _shares(self, mixed: MixedRewards, num_images: int, num_samples: int) -> dict[str, Statistic]:
        """``advantage_share_<name>``: how much of the advantages every reward of the mixture makes up."""
        names = list(mixed.contributions)
        values = torch.tensor([mixed.contributions[name] for name in names])
        values = values.nan_to_num(0.0).masked_fill(torch.tensor(mixed.total).isnan(), torch.nan)
        sampled, greedy = values.split([num_images * num_samples, num_images], dim=1)
        sums = advantage_magnitudes(
            self.baseline, sampled.view(len(names), num_images, num_samples), greedy
        ).tolist()
        return {
            f"advantage_share_{name}": Mean(magnitude, sum(sums))
            for name, magnitude in zip(names, sums, strict=True)
        }

    # state

    def state_dict(self) -> dict[str, Any]:
        """Statistics of normalised rewards, and the rollout that waits; its images are in the dataset."""
        return {"moments": self.mixture.moments.state_dict(), "pending": _record(self._pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the rewards of the pending rollout are asked for again."""
        self.mixture.moments.load_state_dict(state["moments"])
        record = state["pending"]
        if record is None or not self.one_step_off_policy:
            return
        if self.recall is None:
            raise ValueError("a pending rollout cannot be restored without `recall`")
        prompts, columns, features = self.recall(record["image_ids"], record["prompts"])
        rollout = Rollout(**record["rollout"], prompts=prompts, image_features=features).to(
            prompts.input_ids.device
        )
        then = TrainerState(**record["state"])
        self._pending = self._ask(rollout, columns, then, record["num_images"], record["is_padding"])

    @property
    def has_pending(self) -> bool:
        """Whether a rollout of an earlier policy waits for its rewards."""
        return self._pending is not None


def _record(pending: PendingRewards | None) -> dict[str, Any] | None:
    """A pending rollout as tensors and plain values; prompts and features are computed again from the ids."""
    if pending is None:
        return None
    left_out = ("prompts", "image_features", "prompt_cache")
    parts = {f.name: getattr(pending.rollout, f.name) for f in fields(Rollout) if f.name not in left_out}
    return {
        "rollout": parts,
        "image_ids": [str(image_id) for image_id in pending.columns["image_id"]],
        "prompts": list(pending.columns["prompts"]),
        "state": {name: getattr(pending.state, name) for name in ("global_step", "epoch", "max_steps")},
        "num_images": pending.num_images,
        "is_padding": pending.is_padding,
    }


def _per_completion(rollout: Rollout, columns: Columns) -> dict[str, list[Any]]:
    """One value per completion: the K sampled captions of every image in a row, then all greedy ones."""
    num_samples = rollout.ended_by_eos.shape[1]
    repeated = {
        name: [value for value in values for _ in range(num_samples)] + list(values)
        for name, values in columns.items()
    }
    return {
        "completion_ids": _token_ids(rollout),
        "ended_by_eos": rollout.ended_by_eos.flatten().tolist() + rollout.greedy_ended_by_eos.tolist(),
        **repeated,
    }


def _token_ids(rollout: Rollout) -> list[list[int]]:
    """Token ids of the sampled, then of the greedy captions, unpadded, as TRL passes them to rewards."""
    ids = [*rollout.completion_ids.flatten(0, 1).cpu(), *rollout.greedy_ids.cpu()]
    masks = [*rollout.completion_mask.flatten(0, 1).cpu(), *rollout.greedy_mask.cpu()]
    return [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]


def reward_metrics(rewards: RewardOutput, advantages: torch.Tensor) -> dict[str, Statistic]:
    """Means and deviations over all captions with an opinion since the last log."""
    metrics: dict[str, Statistic] = {
        "reward_sampled": Mean.of(rewards.sampled),
        "reward_greedy": Mean.of(rewards.greedy),
        "advantage_mean": Mean.of(advantages),
        "advantage_std": Deviation.of(advantages),
        "zero_advantage_share": Mean.of((advantages == 0).float()),
    }
    for name, values in rewards.components.items():
        metrics[f"reward_{name}"] = Mean.of(values)
        metrics[f"reward_{name}_std"] = Deviation.of(values)
    return metrics
