"""The loss of sampled captions: what :class:`scst.rl.trainer.SCSTTrainer` scores, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from scst.adapters.snapshot import AdapterSnapshot
from scst.data.supervision import CaptionChoice
from scst.distributed.sharded_weights import unsharded
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.objective.losses import cross_entropy_loss, importance_ratios, kl_penalty, policy_gradient_loss
from scst.rollout.cache import prompt_cache
from scst.scoring.head import CHUNK
from scst.scoring.score import distinct_captions, score, without_zero_advantages
from scst.types import Rollout, Sampling, TokenScores


@dataclass(frozen=True)
class Objective:
    """What is optimised.

    Attributes:
        baseline: what a sampled caption's reward is compared with (``scst.objective.advantages.BASELINES``).
        kl_weight: of KL(policy || SFT policy), subtracted from the reward.
        entropy_weight: of the entropy bonus.
        cross_entropy_weight: of cross-entropy on a human caption, added to the policy-gradient loss.
        prompt_gradient: False leaves out the gradient that flows through keys and values of the prompt: an
            approximation that scores captions alone.
        layout: of the scoring pass (``scst.scoring.score.LAYOUTS``).
        merge_captions: score equal captions of an image once.
        skip_zero_advantages: leave out captions whose gradient is exactly zero.
        head_chunk: caption tokens whose logits exist at one time; 0: all of them.
        batch_size: images scored at a time; 0: the whole micro-batch that was sampled together.
        max_importance_ratio: at which the importance ratios of late rollouts are cut.
    """

    baseline: str = "greedy"
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    cross_entropy_weight: float = 0.0
    prompt_gradient: bool = True
    layout: str = "packed"
    merge_captions: bool = True
    skip_zero_advantages: bool = True
    head_chunk: int = CHUNK
    batch_size: int = 0
    max_importance_ratio: float = 2.0


class CaptionLossMixin:
    """Losses for a trainer with a processor, a sampling distribution, an objective and the SFT policy."""

    processor: Any
    sampling: Sampling
    objective: Objective
    sft_policy: AdapterSnapshot
    choice: CaptionChoice
    late_rollouts: bool

    def caption_losses(
        self, policy: Policy, rollout: Rollout, advantages: torch.Tensor, columns: dict[str, list[Any]]
    ) -> torch.Tensor:
        """(B, K) loss of every sampled caption, with gradients.

        Captions that were not scored have the loss 0, which is what their advantage makes of it. ``entropy``
        and ``logprob_gap`` are means over the tokens of the captions whose scores are known (duplicates count
        as often as they were drawn), ``kl`` is one over all captions, or all of the first image.
        """
        unique_index = self._unique_index(rollout, advantages)
        rollout = self._with_prompt_cache(policy, rollout)
        with self.compute_loss_context_manager():
            scores = self._score(policy, rollout, unique_index=unique_index)
        self._record_scores(policy, scores, rollout, unique_index)
        known = rollout.completion_mask & (unique_index >= 0).unsqueeze(-1)
        ratios = self._importance_ratios(scores.logprobs, rollout.sampled_logprobs, known)
        if self.objective.kl_weight:
            ref_logprobs = self._ref_logprobs(policy, rollout, unique_index)
            penalty = kl_penalty(scores.logprobs, ref_logprobs, rollout.completion_mask)
            advantages = advantages - self.objective.kl_weight * penalty
            self._log_kl(scores.logprobs, ref_logprobs, rollout.completion_mask)
        elif self._logs_this_step():
            first = slice(0, 1)
            ref_logprobs = self._ref_logprobs(policy, rollout, unique_index, first)
            self._log_kl(scores.logprobs[first], ref_logprobs, rollout.completion_mask[first])
        losses = policy_gradient_loss(scores.logprobs, rollout.completion_mask, ratios * advantages)
        if scores.entropy is not None:
            losses = losses - self.objective.entropy_weight * scores.entropy.sum(-1)
        if self.objective.cross_entropy_weight:
            human = self._human_caption_losses(policy, rollout, columns["references"], columns["image_id"])
            losses = losses + self.objective.cross_entropy_weight * human
        return losses if losses.requires_grad else losses + self._zero()

    def _unique_index(self, rollout: Rollout, advantages: torch.Tensor) -> torch.Tensor:
        """(B, K) which caption is scored for each caption, -1 for none: ``unique_index`` of :func:`score`.

        Zero advantages stay where another term adds to them: the KL penalty or the entropy bonus. The first
        image stays whole in steps that log its KL, so that this mean is over all captions. Of several
        processes each keeps one caption at least: the backward pass is where they meet.
        """
        if not self.objective.merge_captions:
            num_images, num_samples = advantages.shape
            everyone = torch.arange(num_samples, device=advantages.device).expand(num_images, -1)
        else:
            everyone = distinct_captions(rollout.completion_ids, rollout.completion_mask)
        needs_all = self.objective.kl_weight or self.objective.entropy_weight
        if needs_all or not self.objective.skip_zero_advantages:
            return everyone
        needed = without_zero_advantages(everyone, advantages)
        if self._logs_this_step():
            needed[0] = everyone[0]
        elif self.accelerator.num_processes > 1 and (needed < 0).all():
            needed = everyone.masked_fill(everyone > 0, -1)
            needed[1:] = -1
        return needed

    def _with_prompt_cache(self, policy: Policy, rollout: Rollout) -> Rollout:
        """A late rollout has no cache of its prompts that is of this policy."""
        if self.objective.prompt_gradient or rollout.prompt_cache is not None:
            return rollout
        with self.compute_loss_context_manager(), unsharded(self.model):
            cache = prompt_cache(policy, rollout.prompts, rollout.image_features)
        return replace(rollout, prompt_cache=cache)

    def _importance_ratios(
        self, logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor | float:
        """(B, K) what corrects for a policy that has changed since it sampled; 1 where it has not."""
        if not self.late_rollouts:
            return 1.0
        ratios = importance_ratios(logprobs, sampled_logprobs, known)
        cap = self.objective.max_importance_ratio
        if (captions := known.any(-1)).any():
            self._metrics["importance_ratio"].append(ratios[captions].mean().item())
            self._metrics["importance_ratio_max"].append(ratios[captions].max().item())
            self._metrics["importance_capped"].append((ratios[captions] > cap).float().mean().item())
        return ratios.clamp(max=cap)

    def _zero(self) -> torch.Tensor:
        """A loss of 0 that hangs on the adapter, for a micro-batch that changes nothing."""
        return 0.0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)

    def _score(
        self,
        policy: Policy,
        rollout: Rollout,
        ids: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        *,
        unique_index: torch.Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> TokenScores:
        """Scores of the sampled captions, or of others after the same prompts."""
        return score(
            policy,
            rollout.prompts,
            rollout.completion_ids if ids is None else ids,
            rollout.completion_mask if mask is None else mask,
            sampling or self.sampling,
            image_features=rollout.image_features,
            layout=self.objective.layout,
            prompt_cache=rollout.prompt_cache,
            unique_index=unique_index,
            head_chunk=self.objective.head_chunk,
            with_entropy=bool(self.objective.entropy_weight),
        )

    def _ref_logprobs(
        self, policy: Policy, rollout: Rollout, unique_index: torch.Tensor, images: slice = slice(None)
    ) -> torch.Tensor:
        """(B, K, T) logprobs under the SFT policy of some images of the rollout."""
        part = replace(rollout.select(images), prompt_cache=None)  # the cache is the policy's
        with torch.no_grad(), self.compute_loss_context_manager(), self.sft_policy.applied(self.model):
            return self._score(policy, part, unique_index=unique_index[images]).logprobs

    def _human_caption_losses(
        self, policy: Policy, rollout: Rollout, references: list[list[str]], image_ids: list[str]
    ) -> torch.Tensor:
        """(B, 1) cross-entropy of one human caption per image, under the plain distribution."""
        epoch = int(self.state.epoch or 0)
        captions = [self.choice.choose(r, i, epoch) for r, i in zip(references, image_ids, strict=True)]
        limit = self.sampling.max_new_tokens
        encoder = PromptEncoder.of(self.processor)
        rows = [torch.tensor(encoder.caption_token_ids(caption, limit)) for caption in captions]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=policy.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).bool()
        ids, mask = ids.unsqueeze(1).to(policy.device), mask.unsqueeze(1).to(policy.device)
        plain = Sampling(num_samples=1, max_new_tokens=limit, min_new_tokens=0)
        with self.compute_loss_context_manager():
            scores = self._score(policy, rollout, ids, mask, sampling=plain)
        return cross_entropy_loss(scores.logprobs, mask)
