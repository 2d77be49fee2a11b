"""Stage 2: self-critical sequence training of the adapter that the supervised stage made."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from rewards.mixture import MixedRewards, RewardMixture
from rewards.text import bad_ending_rate, mean_length, repetition_rate
from scst import ops
from scst.data.supervision import CaptionChoice
from scst.errors import ScstError
from scst.memory import (
    FittingParts,
    PhaseMeter,
    average_gradients,
    gradients_kept_on_error,
    join_rollouts,
    select_images,
)
from scst.models.adapters import AdapterSnapshot
from scst.models.policy import Policy
from scst.models.prompts import caption_token_ids, forbidden_token_mask
from scst.objective.advantages import advantage_shares, compute_advantages
from scst.objective.losses import cross_entropy_loss, kl_divergence, kl_penalty, policy_gradient_loss
from scst.rollout.decode import rollout as run_rollout
from scst.rollout.head import CHUNK
from scst.rollout.scoring import distinct_captions, score, without_zero_advantages
from scst.trainer_stop import StopOnRewardErrorMixin
from scst.types import PromptBatch, RewardOutput, Rollout, Sampling, TokenScores
from scst.validation import CaptionValidation, CaptionValidationMixin

LESS_MEMORY = "a smaller max_new_tokens, quantization: nf4"
"""What to change when a single image is too much."""

MAX_LOGPROB_GAP = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}
"""Mean gap in nats between sampled and re-scored logprobs above which a run is refused at its start."""


@dataclass(frozen=True)
class Objective:
    """What is optimised.

    Attributes:
        baseline: what a sampled caption's reward is compared with (``scst.objective.advantages.BASELINES``).
        kl_weight: of KL(policy || SFT policy), subtracted from the reward.
        entropy_weight: of the entropy bonus.
        cross_entropy_weight: of cross-entropy on a human caption, added to the policy-gradient loss.
        layout: of the scoring pass (``scst.rollout.scoring.LAYOUTS``).
        merge_captions: score equal captions of an image once.
        skip_zero_advantages: leave out captions whose gradient is exactly zero.
        head_chunk: caption tokens whose logits exist at one time; 0: all of them.
    """

    baseline: str = "greedy"
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    cross_entropy_weight: float = 0.0
    layout: str = "packed"
    merge_captions: bool = True
    skip_zero_advantages: bool = True
    head_chunk: int = CHUNK


@dataclass(frozen=True)
class StepRecord:
    """The last step in words, for tables and alarms."""

    columns: dict[str, list[Any]]
    rollout: Rollout
    rewards: RewardOutput
    advantages: torch.Tensor


class SCSTTrainer(StopOnRewardErrorMixin, CaptionValidationMixin, Trainer):
    """Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563) of an adapter.

    One step: sample K captions and the greedy one for every image, reward them, subtract the baseline, and
    descend -advantage * log p(caption). One update per rollout, so the gradient is on-policy and needs no
    importance ratio.

    Deviations from the paper: K samples per image instead of 1; the reward counts the end of sequence as a
    word when the policy emitted it; tokens that are no words (image placeholders, padding, ...) are removed
    from the distribution in sampling and scoring alike; dropout is off; only adapter weights change.

    The loss is the mean over captions of the sum over their tokens. It does not depend on how a batch is cut
    into micro-batches or spread over devices: draws are a function of (seed, step, image id). So when memory
    runs out, sampling or scoring goes on with half the images at a time and the step is the same
    (``micro_batch_rollout`` and ``micro_batch_loss`` in the log; not under DeepSpeed or FSDP, where the
    processes meet within every pass). Gradients of several processes are averaged after the last backward
    pass of a step and not within it, so that each may need a different number of them.

    Args:
        model: a PEFT model with a trainable adapter.
        args: training arguments.
        train_dataset: rows with ``image``, ``references`` and ``image_id``.
        data_collator: makes prompt batches (:class:`scst.data.collate.SCSTCollator`).
        processor: the checkpoint's processor.
        sampling: K and the sampling distribution.
        reward: the mixture that is optimised; already set up.
        objective: baseline and weights.
        validation: caption metrics on held-out images, or None.
        choice: human caption for the cross-entropy term.
    """

    computes_eval_loss = False

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Any,
        data_collator: Any,
        processor: Any,
        sampling: Sampling,
        reward: RewardMixture,
        objective: Objective,
        validation: CaptionValidation | None = None,
        choice: CaptionChoice | None = None,
        callbacks: Sequence[Any] | None = None,
    ):
        args.ddp_broadcast_buffers = (
            False  # they are constants, and a retried forward must not wait for others
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=validation.dataset if validation else None,
            data_collator=data_collator,
            processing_class=processor,
            callbacks=list(callbacks or []),
        )
        self.processor = processor
        self.sampling = sampling
        self.reward = reward
        self.objective = objective
        self.validation = validation
        self.choice = choice or CaptionChoice("random", args.seed)
        self.sft_policy = AdapterSnapshot(model)
        self.last_step: StepRecord | None = None
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._policies: dict[int, Policy] = {}
        self._logprobs_checked = False
        self.phases = PhaseMeter(self.args.device)
        self.parts = {
            "rollout": FittingParts("sampling", f"fewer num_samples, {LESS_MEMORY}"),
            "loss": FittingParts(
                "scoring", f"gradient_checkpointing: true, fewer num_samples, {LESS_MEMORY}"
            ),
        }
        for parts in self.parts.values():
            parts.can_split = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sample, reward, compare, and add the gradient of one micro-batch.

        Args:
            model: the model, wrapped for its devices.
            inputs: a batch of :class:`scst.data.collate.SCSTCollator`.
            num_items_in_batch: images of the whole optimizer step, over all micro-batches and processes.

        Returns:
            The loss, a scalar without gradient.
        """
        started = time.perf_counter()
        columns = inputs.pop("columns")
        prompts = PromptBatch(**self._prepare_inputs(inputs))
        policy = self._policy(model)
        with self._timed("rollout"):
            rollout = self._sample_in_parts(policy, prompts, columns["image_id"])
        with self._timed("reward"):
            rewards = self.reward_captions(rollout, columns)
            advantages = compute_advantages(self.objective.baseline, rewards.sampled, rewards.greedy)
        with self._timed("loss"):
            num_captions = self._num_captions(num_items_in_batch, len(prompts))
            loss = self._backward_in_parts(
                model, rollout, advantages.to(policy.device), columns, num_captions
            )
        self._record(rollout, rewards, advantages, columns)
        self._metrics["images_per_s"].append(len(prompts) / (time.perf_counter() - started))
        return loss

    def _sample_in_parts(self, policy: Policy, prompts: PromptBatch, image_ids: Sequence[str]) -> Rollout:
        """The rollout of a micro-batch, of as many images at a time as fit into memory."""
        rollouts: list[Rollout] = []

        def sample(images: slice) -> None:
            rollouts.append(self.sample(policy, prompts.select(images), image_ids[images]))

        self._run_in_parts("rollout", len(prompts), sample)
        return join_rollouts(rollouts, policy.pad_token_id)

    def _backward_in_parts(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        advantages: torch.Tensor,
        columns: dict[str, list[Any]],
        num_captions: torch.Tensor | int,
    ) -> torch.Tensor:
        """Add the gradient of a micro-batch, of as many images at a time as fit into memory.

        Args:
            model: the model, wrapped for its devices.
            rollout: of B images.
            advantages: (B, K).
            columns: a value per image and column.
            num_captions: of the optimizer step, over all micro-batches and processes.

        Returns:
            The loss, a scalar without gradient.
        """
        policy, losses = self._policy(model), []
        trainable = [p for p in model.parameters() if p.requires_grad]
        averages = isinstance(model, torch.nn.parallel.DistributedDataParallel)

        def backward(images: slice) -> None:
            part = {name: values[images] for name, values in columns.items()}
            with model.no_sync() if averages else nullcontext(), gradients_kept_on_error(trainable):
                loss = self.caption_losses(policy, select_images(rollout, images), advantages[images], part)
                loss = loss.sum() / num_captions * self.accelerator.num_processes
                self.accelerator.backward(loss, **self._backward_arguments())
            losses.append(loss.detach())

        self._run_in_parts("loss", len(rollout.prompts), backward)
        if averages and self.accelerator.sync_gradients:
            average_gradients(trainable, self.accelerator)
        return torch.stack(losses).sum()

    def _run_in_parts(self, phase: str, num_images: int, work: Callable[[slice], None]) -> None:
        """Run a phase. What its parts log counts by their images; what a failed part logged is dropped."""
        logged: dict[str, list[float]] = defaultdict(list)
        sizes: dict[str, int] = defaultdict(int)

        def logging_work(images: slice) -> None:
            everything, self._metrics = self._metrics, defaultdict(list)
            try:
                work(images)
                for name, values in self._metrics.items():
                    size = images.stop - images.start
                    logged[name].append(sum(values) / len(values) * size)
                    sizes[name] += size
            finally:
                self._metrics = everything

        self.parts[phase].run(num_images, logging_work)
        for name, values in logged.items():
            self._metrics[name].append(sum(values) / sizes[name])
        self._metrics[f"micro_batch_{phase}"].append(self.parts[phase].size(num_images))

    def sample(self, policy: Policy, prompts: PromptBatch, image_ids: Sequence[str]) -> Rollout:
        """The rollout of a micro-batch, in eval mode."""
        uniforms = ops.rollout_uniforms(
            image_ids,
            seed=self.args.seed,
            step=self.state.global_step,
            num_samples=self.sampling.num_samples,
            length=self.sampling.max_new_tokens,
        )
        cache = getattr(self, "feature_cache", None)  # a scst.rollout.features.FeatureCache
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            features = cache.features(policy, prompts.pixel_values, image_ids) if cache else None
            result = run_rollout(policy, self.processor, prompts, self.sampling, uniforms, features)
        self.model.train()
        return result

    def reward_captions(self, rollout: Rollout, columns: dict[str, list[Any]]) -> RewardOutput:
        """Rewards of all sampled and greedy captions, in one call of every reward function.

        Raises:
            RewardError: on all processes when a reward of any fails, after a checkpoint was saved.
        """
        num_images, num_samples = rollout.ended_by_eos.shape
        completions = [text for group in rollout.captions for text in group] + rollout.greedy_captions
        ended = rollout.ended_by_eos.flatten().tolist() + rollout.greedy_ended_by_eos.tolist()
        repeated = {
            name: [value for value in values for _ in range(num_samples)] + list(values)
            for name, values in columns.items()
        }
        mixed = self.rewards_of_all_processes(
            completions=completions,
            completion_ids=_token_ids(rollout),
            ended_by_eos=ended,
            trainer_state=self.state,
            log_metric=lambda name, value: self._metrics[name].append(float(value)),
            log_extra=None,
            **repeated,
        )
        sampled_count = num_images * num_samples
        sampled, greedy = torch.tensor(mixed.total).split([sampled_count, num_images])
        components = {
            name: torch.tensor(values[:sampled_count]).view(num_images, num_samples)
            for name, values in mixed.components.items()
        }
        self._record_shares(mixed, num_images, num_samples)
        return RewardOutput(sampled.view(num_images, num_samples), greedy, components)

    def caption_losses(
        self, policy: Policy, rollout: Rollout, advantages: torch.Tensor, columns: dict[str, list[Any]]
    ) -> torch.Tensor:
        """(B, K) loss of every sampled caption, with gradients.

        Captions that were not scored have the loss 0, which is what their advantage makes of it. ``entropy``
        and ``logprob_gap`` are means over the tokens of the captions whose scores are known (duplicates count
        as often as they were drawn), ``kl`` is one over all captions, or all of the first image.
        """
        scored_as = self._scored_as(rollout, advantages)
        with self.compute_loss_context_manager():
            scores = self._score(
                policy, rollout.prompts, rollout.completion_ids, rollout.completion_mask, rollout, scored_as
            )
        self._record_scores(policy, scores, rollout, scored_as)
        if self.objective.kl_weight:
            ref_logprobs = self._ref_logprobs(policy, rollout, scored_as)
            penalty = kl_penalty(scores.logprobs, ref_logprobs, rollout.completion_mask)
            advantages = advantages - self.objective.kl_weight * penalty
            self._log_kl(scores.logprobs, ref_logprobs, rollout.completion_mask)
        elif self._logs_this_step():
            first = slice(0, 1)
            ref_logprobs = self._ref_logprobs(policy, rollout, scored_as, first)
            self._log_kl(scores.logprobs[first], ref_logprobs, rollout.completion_mask[first])
        losses = policy_gradient_loss(scores.logprobs, rollout.completion_mask, advantages)
        losses = losses - self.objective.entropy_weight * scores.entropy.sum(-1)
        if self.objective.cross_entropy_weight:
            human = self._human_caption_losses(policy, rollout, columns["references"], columns["image_id"])
            losses = losses + self.objective.cross_entropy_weight * human
        return losses if losses.requires_grad else losses + self._zero()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step metrics since the last log: means, of memory the maximum, over all processes."""
        if self._metrics and "loss" in logs:
            names = sorted(self._metrics)
            here = torch.tensor([_summary(name, self._metrics[name]) for name in names])
            everywhere = self.accelerator.gather(here.to(self.args.device)).view(-1, len(names))
            values = [_summary(*pair) for pair in zip(names, everywhere.T.tolist(), strict=True)]
            logs = {**logs, **dict(zip(names, values, strict=True))}
            self._metrics.clear()
        super().log(logs, start_time)

    def _scored_as(self, rollout: Rollout, advantages: torch.Tensor) -> torch.Tensor:
        """(B, K) whose scores each caption takes, -1 where none are needed: ``scored_as`` of :func:`score`.

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

    def _zero(self) -> torch.Tensor:
        """A loss of 0 that hangs on the adapter, for a micro-batch that changes nothing."""
        return 0.0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)

    def _score(
        self,
        policy: Policy,
        prompts: PromptBatch,
        ids: torch.Tensor,
        mask: torch.Tensor,
        rollout: Rollout,
        scored_as: torch.Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> TokenScores:
        features = rollout.image_features
        return score(
            policy,
            prompts,
            ids,
            mask,
            sampling or self.sampling,
            image_features=features[: len(prompts)] if features is not None else None,
            layout=self.objective.layout,
            scored_as=scored_as,
            head_chunk=self.objective.head_chunk,
            entropy_gradient=bool(self.objective.entropy_weight),
        )

    def _ref_logprobs(
        self, policy: Policy, rollout: Rollout, scored_as: torch.Tensor, images: slice = slice(None)
    ) -> torch.Tensor:
        """(B, K, T) logprobs under the SFT policy of the first images of the rollout."""
        with torch.no_grad(), self.compute_loss_context_manager(), self.sft_policy.applied(self.model):
            return self._score(
                policy,
                rollout.prompts.select(images),
                rollout.completion_ids[images],
                rollout.completion_mask[images],
                rollout,
                scored_as[images],
            ).logprobs

    def _human_caption_losses(
        self, policy: Policy, rollout: Rollout, references: list[list[str]], image_ids: list[str]
    ) -> torch.Tensor:
        """(B, 1) cross-entropy of one human caption per image, under the plain distribution."""
        epoch = int(self.state.epoch or 0)
        captions = [self.choice.choose(r, i, epoch) for r, i in zip(references, image_ids, strict=True)]
        limit = self.sampling.max_new_tokens
        rows = [torch.tensor(caption_token_ids(self.processor, caption, limit)) for caption in captions]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=policy.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).bool()
        ids, mask = ids.unsqueeze(1).to(policy.device), mask.unsqueeze(1).to(policy.device)
        plain = Sampling(num_samples=1, max_new_tokens=limit, min_new_tokens=0)
        with self.compute_loss_context_manager():
            scores = self._score(policy, rollout.prompts, ids, mask, rollout, sampling=plain)
        return cross_entropy_loss(scores.logprobs, mask)

    def _record_scores(
        self, policy: Policy, scores: TokenScores, rollout: Rollout, scored_as: torch.Tensor
    ) -> None:
        """What the log says about the captions that were scored, if any."""
        own = torch.arange(scored_as.shape[1], device=scored_as.device)
        self._metrics["scored_share"].append((scored_as == own).float().mean().item())
        known = rollout.completion_mask & (scored_as >= 0).unsqueeze(-1)
        if known.any():
            self._metrics["entropy"].append(ops.masked_mean(scores.entropy, known).item())
            self._check_logprobs(policy, scores, rollout, known)

    def _check_logprobs(
        self, policy: Policy, scores: TokenScores, rollout: Rollout, known: torch.Tensor
    ) -> None:
        """At the first step of a run: what was sampled and what is scored must be one distribution."""
        gap = ops.masked_mean((scores.logprobs - rollout.sampled_logprobs).abs(), known).item()
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

    def _policy(self, model: torch.nn.Module) -> Policy:
        if id(model) not in self._policies:
            tokenizer = self.processor.tokenizer
            vocab_size = self.model.config.get_text_config().vocab_size
            forbidden = forbidden_token_mask(self.processor, vocab_size)
            self._policies = {
                id(model): Policy(model, forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id)
            }
        return self._policies[id(model)]

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor:
        """Images of one optimizer step, over all micro-batches and processes."""
        count = torch.tensor(sum(len(batch["input_ids"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum()

    def _num_captions(self, num_items_in_batch: torch.Tensor | None, micro_batch: int) -> torch.Tensor | int:
        images = micro_batch if num_items_in_batch is None else num_items_in_batch
        return images * self.sampling.num_samples

    def _backward_arguments(self) -> dict[str, Any]:
        """DeepSpeed would divide by the accumulation steps once more."""
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with self.phases.measure(phase) as usage:
            yield
        self._metrics[f"seconds_{phase}"].append(usage.seconds)
        self._metrics[f"memory_gb_{phase}"].append(usage.peak_gb)


def _summary(name: str, values: list[float]) -> float:
    return max(values) if name.startswith("memory_gb_") else sum(values) / len(values)


def _token_ids(rollout: Rollout) -> list[list[int]]:
    """Token ids of the sampled, then of the greedy captions, unpadded, as TRL passes them to rewards."""
    ids = [*rollout.completion_ids.flatten(0, 1).cpu(), *rollout.greedy_ids.cpu()]
    masks = [*rollout.completion_mask.flatten(0, 1).cpu(), *rollout.greedy_mask.cpu()]
    return [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
