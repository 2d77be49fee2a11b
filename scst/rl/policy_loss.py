"""The loss of sampled captions: scores them under the policy, and adds the terms of the objective."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from scst.adapters.snapshot import AdapterSnapshot
from scst.data.supervision import CaptionChoice
from scst.distributed.sharded_weights import unsharded
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.objective.losses import (
    cross_entropy_loss,
    importance_ratios,
    kl_divergence,
    kl_penalty,
    policy_gradient_loss,
)
from scst.rl.logprob_check import check_logprobs, with_other_rounding
from scst.rl.rewarder import Columns
from scst.rollout.cache import prompt_cache
from scst.scoring.agreement import logprob_gap
from scst.scoring.head import CHUNK
from scst.scoring.score_captions import distinct_captions, score, without_zero_advantages
from scst.training.step_metrics import Mean, Peak, Statistic, merge
from scst.types import Rollout, Sampling, TokenScores


@dataclass(frozen=True)
class Objective:
    """What is optimised.

    Attributes:
        baseline: what a sampled caption's reward is compared with (``scst.objective.advantages.BASELINES``).
        kl_weight: of KL(policy || SFT policy), subtracted from the reward.
        entropy_weight: of the entropy bonus.
        cross_entropy_weight: of cross-entropy on a human caption, added to the policy-gradient loss.
        max_importance_ratio: at which the importance ratios of one-step off-policy captions are cut.
    """

    baseline: str = "greedy"
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    cross_entropy_weight: float = 0.0
    max_importance_ratio: float = 2.0


@dataclass(frozen=True)
class ScoringSettings:
    """How captions are scored. The gradient is the same for all of them but ``prompt_gradient: False``.

    Attributes:
        layout: of the scoring pass (``scst.scoring.score_captions.LAYOUTS``).
        prompt_gradient: False leaves out the gradient that flows through keys and values of the prompt: an
            approximation that scores captions alone.
        merge_captions: score equal captions of an image once.
        skip_zero_advantages: leave out captions whose gradient is exactly zero.
        head_chunk: caption tokens whose logits exist at one time; 0: all of them.
        batch_size: images scored at a time; 0: the whole micro-batch that was sampled together.
    """

    layout: str = "packed"
    prompt_gradient: bool = True
    merge_captions: bool = True
    skip_zero_advantages: bool = True
    head_chunk: int = CHUNK
    batch_size: int = 0


@dataclass(frozen=True)
class LossOutput:
    """Losses of captions, with gradients, and what the log says about them.

    Attributes:
        losses: (B, K); 0 for captions that were not scored, which is what their advantage makes of it.
        metrics: statistics over the scored captions.
    """

    losses: torch.Tensor
    metrics: dict[str, Statistic]


class PolicyLoss:
    """-advantage * log p(caption), summed over the caption's tokens, and the other terms of the objective.

    Args:
        model: the PEFT model; its adapter is now that of the SFT policy, which KL is measured from.
        encoder: encodes human captions for the cross-entropy term.
        sampling: the distribution that captions are drawn from and scored under.
        objective: what is optimised.
        scoring: how captions are scored.
        choice: human caption for the cross-entropy term.
        autocast: the context of mixed precision for forward passes.
        is_off_policy: captions were drawn from an earlier policy: correct with importance ratios.
        scores_always: score one caption at least: processes wait for each other within the passes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoder: PromptEncoder,
        sampling: Sampling,
        objective: Objective,
        scoring: ScoringSettings,
        *,
        choice: CaptionChoice,
        autocast: Callable[[], AbstractContextManager[Any]],
        is_off_policy: bool = False,
        scores_always: bool = False,
    ):
        self.model = model
        self.encoder = encoder
        self.sampling = sampling
        self.objective = objective
        self.scoring = scoring
        self.choice = choice
        self.autocast = autocast
        self.is_off_policy = is_off_policy
        self.scores_always = scores_always
        self.sft_policy = AdapterSnapshot(model)
        self._is_checked = False

    def __call__(
        self,
        policy: Policy,
        rollout: Rollout,
        advantages: torch.Tensor,
        columns: Columns,
        *,
        epoch: int = 0,
        probes_kl: bool = False,
    ) -> LossOutput:
        """The loss of every sampled caption of B images, with gradients.

        Args:
            policy: the model, wrapped for its devices.
            rollout: of the images.
            advantages: (B, K).
            columns: ``references`` and ``image_id`` for the cross-entropy term.
            epoch: decides which human caption.
            probes_kl: report the KL of the first image's captions where the objective has no KL term; all of
                them are scored for it.
        """
        unique_index = self._unique_index(rollout, advantages, probes_kl)
        rollout = self._with_prompt_cache(policy, rollout)
        scores = self._score(policy, rollout, unique_index=unique_index)
        known = rollout.completion_mask & (unique_index >= 0).unsqueeze(-1)
        metrics = self._score_metrics(policy, scores, rollout, unique_index, known)
        weights = advantages
        if self.objective.kl_weight:
            ref_logprobs = self._ref_logprobs(policy, rollout, unique_index)
            penalty = kl_penalty(scores.logprobs, ref_logprobs, rollout.completion_mask)
            weights = weights - self.objective.kl_weight * penalty
            metrics |= {"kl": Mean.of(kl_divergence(scores.logprobs, ref_logprobs, rollout.completion_mask))}
        elif probes_kl:
            metrics |= self._kl_of_first_image(policy, scores, rollout, unique_index)
        if self.is_off_policy:
            ratios = importance_ratios(scores.logprobs, rollout.sampled_logprobs, known)
            metrics |= self._ratio_metrics(ratios, known)
            weights = weights * ratios.clamp(max=self.objective.max_importance_ratio)
        losses = policy_gradient_loss(scores.logprobs, rollout.completion_mask, weights)
        if scores.entropy is not None:  # computed for the entropy bonus only
            losses = losses - self.objective.entropy_weight * scores.entropy.sum(-1)
        if self.objective.cross_entropy_weight:
            human = self._human_caption_losses(policy, rollout, columns, epoch)
            losses = losses + self.objective.cross_entropy_weight * human
        return LossOutput(losses if losses.requires_grad else losses + self._zero(), metrics)

    def skip_check(self) -> None:
        """The policy has changed since it sampled what comes first (a resumed run): a gap would be no bug."""
        self._is_checked = True

    def _unique_index(
        self, rollout: Rollout, advantages: torch.Tensor, whole_first_image: bool
    ) -> torch.Tensor:
        """(B, K) whose scores each caption takes, -1 where none are needed: see :func:`score`.

        Captions with zero advantage stay where another term adds to them: the KL penalty or the entropy
        bonus.
        """
        if not self.scoring.merge_captions:
            num_images, num_samples = advantages.shape
            index = torch.arange(num_samples, device=advantages.device).expand(num_images, -1)
        else:
            index = distinct_captions(rollout.completion_ids, rollout.completion_mask)
        needs_all = self.objective.kl_weight or self.objective.entropy_weight
        if needs_all or not self.scoring.skip_zero_advantages:
            return index
        needed = without_zero_advantages(index, advantages)
        if whole_first_image:
            needed[0] = index[0]
        elif self.scores_always and (needed < 0).all():
            needed[0, 0] = 0
        return needed

    def _with_prompt_cache(self, policy: Policy, rollout: Rollout) -> Rollout:
        """An off-policy rollout has no cache of its prompts that is of this policy."""
        if self.scoring.prompt_gradient or rollout.prompt_cache is not None:
            return rollout
        if rollout.image_features is None:
            raise ValueError("a rollout scored without the prompt's gradient must keep its image features")
        with self.autocast(), unsharded(self.model):
            cache = prompt_cache(policy, rollout.prompts, rollout.image_features)
        return replace(rollout, prompt_cache=cache)

    def _zero(self) -> torch.Tensor:
        """A loss of 0 that depends on the adapter, for images that change nothing: backward needs a graph."""
        trainable = [p.sum() for p in self.model.parameters() if p.requires_grad]
        return 0.0 * torch.stack(trainable).sum()

    def _score(
        self,
        policy: Policy,
        rollout: Rollout,
        *,
        unique_index: torch.Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> TokenScores:
        """Scores of the rollout's captions."""
        with self.autocast():
            return score(
                policy,
                rollout.prompts,
                rollout.completion_ids,
                rollout.completion_mask,
                sampling or self.sampling,
                image_features=rollout.image_features,
                layout=self.scoring.layout,
                prompt_cache=rollout.prompt_cache,
                unique_index=unique_index,
                head_chunk=self.scoring.head_chunk,
                with_entropy=bool(self.objective.entropy_weight),
            )

    def _score_metrics(
        self,
        policy: Policy,
        scores: TokenScores,
        rollout: Rollout,
        unique_index: torch.Tensor,
        known: torch.Tensor,
    ) -> dict[str, Statistic]:
        """``scored_share`` of the captions; ``logprob_gap`` over the tokens of those that were scored."""
        own = torch.arange(unique_index.shape[1], device=unique_index.device)
        metrics: dict[str, Statistic] = {"scored_share": Mean.of((unique_index == own).float())}
        gaps = Mean.of((scores.logprobs - rollout.sampled_logprobs).abs(), known)
        if gaps.count:
            metrics["logprob_gap"] = gaps
            self._check(policy, scores, rollout, unique_index, known)
        return metrics

    def _check(
        self,
        policy: Policy,
        scores: TokenScores,
        rollout: Rollout,
        unique_index: torch.Tensor,
        known: torch.Tensor,
    ) -> None:
        """Once per run; see :mod:`scst.rl.logprob_check`."""
        if self._is_checked:
            return
        self._is_checked = True
        with torch.no_grad():
            other = with_other_rounding(rollout, policy.pad_token_id)
            again = self._score(policy, other, unique_index=unique_index.flip(0)).logprobs.flip(0)
        dtype = self._dtype(policy)
        check_logprobs(logprob_gap(scores.logprobs.detach(), again, rollout.sampled_logprobs, known, dtype))

    def _dtype(self, policy: Policy) -> torch.dtype:
        """Precision of computation: that of autocast, else of the weights; LLM.int8 computes in fp16."""
        kind = policy.device.type
        with self.autocast():
            if torch.is_autocast_enabled(kind):
                return torch.get_autocast_dtype(kind)
        if getattr(policy.inner, "is_loaded_in_8bit", False):
            return torch.float16
        return policy.inner.dtype

    def _ref_logprobs(
        self, policy: Policy, rollout: Rollout, unique_index: torch.Tensor, images: slice = slice(None)
    ) -> torch.Tensor:
        """(B, K, T) logprobs under the SFT policy of some images of the rollout."""
        part = replace(rollout.select(images), prompt_cache=None)  # the cache is the policy's
        with torch.no_grad(), self.sft_policy.applied(self.model):
            return self._score(policy, part, unique_index=unique_index[images]).logprobs

    def _kl_of_first_image(
        self, policy: Policy, scores: TokenScores, rollout: Rollout, unique_index: torch.Tensor
    ) -> dict[str, Statistic]:
        first = slice(0, 1)
        ref_logprobs = self._ref_logprobs(policy, rollout, unique_index, first)
        divergence = kl_divergence(scores.logprobs[first], ref_logprobs, rollout.completion_mask[first])
        return {"kl": Mean.of(divergence)}

    def _ratio_metrics(self, ratios: torch.Tensor, known: torch.Tensor) -> dict[str, Statistic]:
        """Over the captions that were scored."""
        ratios = ratios[known.any(-1)]
        if not len(ratios):
            return {}
        return {
            "importance_ratio": Mean.of(ratios),
            "importance_ratio_max": Peak(ratios.max().item()),
            "importance_capped": Mean.of((ratios > self.objective.max_importance_ratio).float()),
        }

    def _human_caption_losses(
        self, policy: Policy, rollout: Rollout, columns: Columns, epoch: int
    ) -> torch.Tensor:
        """(B, 1) cross-entropy of one human caption per image, under the plain distribution."""
        pairs = zip(columns["references"], columns["image_id"], strict=True)
        captions = [self.choice.choose(references, image_id, epoch) for references, image_id in pairs]
        limit = self.sampling.max_new_tokens
        rows = [torch.tensor(self.encoder.caption_token_ids(caption, limit)) for caption in captions]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=policy.pad_token_id)
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True).bool()
        ids, mask = ids.unsqueeze(1).to(policy.device), mask.unsqueeze(1).to(policy.device)
        human = replace(rollout, completion_ids=ids, completion_mask=mask)
        plain = Sampling(num_samples=1, max_new_tokens=limit, min_new_tokens=0)
        return cross_entropy_loss(self._score(policy, human, sampling=plain).logprobs, mask)


def merged_metrics(outputs: list[LossOutput]) -> dict[str, Statistic]:
    """The metrics of several parts of a micro-batch."""
    merged: dict[str, Statistic] = {}
    for output in outputs:
        merge(merged, output.metrics)
    return merged
