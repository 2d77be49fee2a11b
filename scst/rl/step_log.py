"""What the log says about every step of :class:`scst.rl.trainer.SCSTTrainer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object

from rewards.mixture import MixedRewards
from rewards.scorers.text import bad_ending_rate, mean_length, repetition_rate
from scst.errors import ScstError
from scst.models.policy import Policy
from scst.objective.advantages import advantage_shares
from scst.objective.losses import kl_divergence
from scst.rollout import distribution
from scst.training.memory import PhaseMeter
from scst.types import RewardOutput, Rollout, TokenScores

MAX_LOGPROB_GAP = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}
"""Mean gap in nats between sampled and re-scored logprobs above which a run is refused at its start."""


@dataclass(frozen=True)
class StepRecord:
    """The last step in words, for tables and alarms."""

    columns: dict[str, list[Any]]
    rollout: Rollout
    rewards: RewardOutput
    advantages: torch.Tensor


class StepLogMixin:
    """Step metrics of a trainer with an objective: means between two logs, over all processes."""

    phases: PhaseMeter
    last_step: StepRecord | None
    _metrics: dict[str, list[float]]
    _since_log: dict[str, tuple[float, float]]
    _logprobs_checked: bool

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step metrics since the last log: means over images, of memory the maximum, over all
        processes. Not all of them need to have them all."""
        if "loss" in logs:
            everywhere = gather_object([self._since_log])
            names = sorted({name for process in everywhere for name in process})
            found = {name: [process[name] for process in everywhere if name in process] for name in names}
            logs = {**logs, **{name: _summary(name, values)[0] for name, values in found.items()}}
            self._since_log = {}
        super().log(logs, start_time)

    def _end_micro_batch(self, num_images: int) -> None:
        """Keep what a micro-batch logged until the next log, weighted by its images; nothing of no images."""
        if num_images:
            for name, values in self._metrics.items():
                here = [(value, num_images / len(values)) for value in values]
                before = [self._since_log[name]] if name in self._since_log else []
                self._since_log[name] = _summary(name, before + here)
        self._metrics.clear()

    def _record(
        self, rollout: Rollout, rewards: RewardOutput, advantages: torch.Tensor, columns: dict[str, list[Any]]
    ) -> None:
        """Everything worth watching about one micro-batch."""
        texts = [text for group in rollout.captions for text in group]
        step = {
            "reward_sampled": rewards.sampled.nanmean().item(),
            "reward_greedy": rewards.greedy.nanmean().item(),
            "advantage_mean": advantages.mean().item(),
            "advantage_std": advantages.std(correction=0).item(),
            "zero_advantage_share": (advantages == 0).float().mean().item(),
            "ended_by_eos": rollout.ended_by_eos.float().mean().item(),
            "caption_length": mean_length(texts),
            "distinct_samples": sum(len(set(g)) / len(g) for g in rollout.captions) / len(rollout.captions),
            "most_common_caption": max(texts.count(text) for text in set(texts)) / len(texts),
            "bad_ending_rate": bad_ending_rate(texts),
            "repetition_rate": repetition_rate(texts),
        }
        for name, values in rewards.components.items():
            step[f"reward_{name}"] = values.nanmean().item()
            step[f"reward_{name}_std"] = (values - values.nanmean()).square().nanmean().sqrt().item()
        for name, value in step.items():
            self._metrics[name].append(value)
        self.last_step = StepRecord(columns, rollout, rewards, advantages)

    def _record_shares(self, mixed: MixedRewards, num_images: int, num_samples: int) -> None:
        """``advantage_share_<name>``: how much of the advantages every reward of the mixture makes up."""
        names = list(mixed.contributions)
        values = torch.tensor([mixed.contributions[name] for name in names])
        values = values.nan_to_num(0.0).masked_fill(torch.tensor(mixed.total).isnan(), torch.nan)
        sampled, greedy = values.split([num_images * num_samples, num_images], dim=1)
        shares = advantage_shares(
            self.objective.baseline, sampled.view(len(names), num_images, num_samples), greedy
        )
        for name, share in zip(names, shares.tolist(), strict=True):
            self._metrics[f"advantage_share_{name}"].append(share)

    def _record_scores(
        self, policy: Policy, scores: TokenScores, rollout: Rollout, unique_index: torch.Tensor
    ) -> None:
        """What the log says about the captions that were scored, if any."""
        own = torch.arange(unique_index.shape[1], device=unique_index.device)
        self._metrics["scored_share"].append((unique_index == own).float().mean().item())
        known = rollout.completion_mask & (unique_index >= 0).unsqueeze(-1)
        entropy = distribution.masked_mean(-rollout.sampled_logprobs, rollout.completion_mask)
        self._metrics["entropy"].append(entropy.item())
        if known.any():
            self._check_logprobs(policy, scores, rollout, known)

    def _check_logprobs(
        self, policy: Policy, scores: TokenScores, rollout: Rollout, known: torch.Tensor
    ) -> None:
        """At the first step of a run: what was sampled and what is scored must be one distribution."""
        gap = distribution.masked_mean((scores.logprobs - rollout.sampled_logprobs).abs(), known).item()
        self._metrics["logprob_gap"].append(gap)
        if self._logprobs_checked:
            return
        self._logprobs_checked = True
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        if getattr(policy.inner, "is_loaded_in_8bit", False) and precision == "fp32":
            precision = "fp16"  # LLM.int8 computes in fp16
        limit = MAX_LOGPROB_GAP[precision]
        if not gap <= limit:
            raise ScstError(
                f"sampled and re-scored log probabilities differ by {gap:.4f} nats per token on average "
                f"(limit {limit} in {precision}): sampling and scoring do not see the same policy. Try "
                "scoring: plain and attn_implementation: eager, and report the library versions in run.json"
            )

    def _log_kl(self, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor) -> None:
        self._metrics["kl"].append(kl_divergence(logprobs, ref_logprobs, mask).mean().item())

    def _logs_this_step(self) -> bool:
        return (self.state.global_step + 1) % max(1, int(self.state.logging_steps or 1)) == 0

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with self.phases.measure(phase) as usage:
            yield
        self._metrics[f"seconds_{phase}"].append(usage.seconds)
        self._metrics[f"memory_gb_{phase}"].append(usage.peak_gb)


def _summary(name: str, values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Weighted mean of (value, weight), of memory the maximum; and the sum of the weights."""
    weight = sum(weight for _, weight in values)
    if name.startswith("memory_gb_"):
        return max(value for value, _ in values), weight
    return sum(value * weight for value, weight in values) / weight, weight
