"""Stage 2: self-critical sequence training of the adapter that the supervised stage made."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from rewards.mixture import RewardMixture
from scst.adapters.snapshot import AdapterSnapshot
from scst.data.supervision import CaptionChoice
from scst.distributed.collectives import average_gradients, gradients_kept_on_error
from scst.distributed.sharded_loader import SPARE
from scst.distributed.sharded_weights import unsharded
from scst.errors import RecipeError
from scst.models.policy import Policy, policy_for, trains_prompt
from scst.models.prompts import PromptEncoder
from scst.objective.advantages import compute_advantages
from scst.rl.policy_loss import CaptionLossMixin, Objective
from scst.rl.rewarder import RewardsMixin
from scst.rl.step_log import StepLogMixin, StepRecord
from scst.rollout import distribution
from scst.rollout.decode import rollout as run_rollout
from scst.rollout.feature_cache import FeatureCache
from scst.training.memory import FittingParts, PhaseMeter
from scst.training.sharded_batches import EpochOfCollator, SharedBatchesMixin
from scst.training.validation import CaptionValidation, CaptionValidationMixin
from scst.types import PromptBatch, Rollout, Sampling

LESS_MEMORY = "a smaller max_new_tokens, quantization: nf4"
"""What to change when a single image is too much."""


class SCSTTrainer(
    RewardsMixin, CaptionLossMixin, StepLogMixin, SharedBatchesMixin, CaptionValidationMixin, Trainer
):
    """Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563) of an adapter.

    One step: sample K captions and the greedy one for every image, reward them, subtract the baseline, and
    descend -advantage * log p(caption). One update per rollout, so the gradient is on-policy and needs no
    importance ratio (but with ``late_rollouts``).

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
        feature_cache: keeps the image features of the training images over epochs; None to compute them.
        late_rollouts: learn from the captions of the micro-batch before; rewards are computed meanwhile.
        cuda_graphs: record the steps of decoding (:mod:`scst.rollout.static`).
        streamed_weights: under ZeRO-3, gather weights layer by layer while sampling, in step with all others.
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
        feature_cache: FeatureCache | None = None,
        late_rollouts: bool = False,
        cuda_graphs: bool = False,
        streamed_weights: bool = False,
        callbacks: Sequence[Any] | None = None,
    ):
        args.ddp_broadcast_buffers = False  # constants; a retried forward must not wait for other processes
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=validation.dataset if validation else None,
            data_collator=data_collator,
            processing_class=PromptEncoder.of(processor).processor,
            callbacks=[EpochOfCollator(data_collator), *(callbacks or [])],
        )
        self.processor = processor
        self.sampling = sampling
        self.reward = reward
        self.objective = objective
        self.validation = validation
        self.choice = choice or CaptionChoice("random", args.seed)
        self.feature_cache = feature_cache
        self.late_rollouts = late_rollouts
        self.cuda_graphs = cuda_graphs
        self.streamed_weights = streamed_weights
        self.sft_policy = AdapterSnapshot(model)
        self.last_step: StepRecord | None = None
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._since_log: dict[str, tuple[float, float]] = {}
        self._policies: dict[int, Policy] = {}
        self._logprobs_checked = False
        self.phases = PhaseMeter(self.args.device)
        advice = {
            "rollout": f"fewer num_samples, {LESS_MEMORY}",
            "loss": f"gradient_checkpointing: true, fewer num_samples, {LESS_MEMORY}",
        }
        self.parts = {
            "rollout": FittingParts("sampling", advice["rollout"]),
            "loss": FittingParts("scoring", advice["loss"], objective.batch_size or None),
        }
        for parts in self.parts.values():
            parts.can_split = not self._meets_in_passes()
        self._refuse_what_cannot_work(objective)

    def _refuse_what_cannot_work(self, objective: Objective) -> None:
        if not objective.prompt_gradient and self._policy(self.model).vision_is_trainable:
            raise RecipeError(
                "prompt_gradient: false trains nothing in the vision tower and the projector, but the "
                "adapter is there: train it with prompt_gradient: true"
            )
        if not objective.prompt_gradient and trains_prompt(self.model):
            raise RecipeError(
                "prompt_gradient: false trains no prompt tokens, and the adapter has nothing else: train it "
                "with prompt_gradient: true"
            )
        if objective.batch_size and self._meets_in_passes():
            raise RecipeError(
                "scoring_batch_size: under DeepSpeed and FSDP a micro-batch is scored whole; give a smaller "
                "per_device_train_batch_size and more gradient_accumulation_steps"
            )

    def _meets_in_passes(self) -> bool:
        """Whether processes wait for each other within forward and backward passes."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

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
        columns, is_spare = inputs.pop("columns"), inputs.pop(SPARE, False)
        prompts = PromptBatch(**self._prepare_inputs(inputs))
        policy = self._policy(model)
        with self._timed("rollout"):
            rollout = self._sample_in_parts(policy, prompts, columns["image_id"])
        with self._timed("reward"):
            asked = self.ask_rewards(rollout, columns, num_items_in_batch, is_spare=is_spare)
            if self.late_rollouts and (asked := self.one_step_late(asked)) is None:
                return torch.zeros((), device=policy.device)
            rollout, columns, is_spare = asked.rollout, asked.columns, asked.is_spare
            rewards = self.reward_captions(asked)
            advantages = compute_advantages(self.objective.baseline, rewards.sampled, rewards.greedy)
        with self._timed("loss"):
            num_captions = self._num_captions(asked.num_items, len(rollout.prompts))
            if is_spare:  # it is scored only because the others wait within the passes, and weighs nothing
                advantages, num_captions = torch.zeros(rollout.ended_by_eos.shape), math.inf
            loss = self._backward_in_parts(
                model, rollout, advantages.to(policy.device), columns, num_captions
            )
        if not is_spare:
            self._record(rollout, rewards, advantages, columns)
            self._metrics["images_per_s"].append(len(prompts) / (time.perf_counter() - started))
        self._end_micro_batch(0 if is_spare else len(prompts))
        return loss

    def _sample_in_parts(self, policy: Policy, prompts: PromptBatch, image_ids: Sequence[str]) -> Rollout:
        """The rollout of a micro-batch, of as many images at a time as fit into memory."""
        rollouts: list[Rollout] = []

        def sample(images: slice) -> None:
            rollouts.append(self.sample(policy, prompts.select(images), image_ids[images]))

        self._run_in_parts("rollout", len(prompts), sample)
        return Rollout.join(rollouts, policy.pad_token_id)

    def _backward_in_parts(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        advantages: torch.Tensor,
        columns: dict[str, list[Any]],
        num_captions: torch.Tensor | float,
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
                loss = self.caption_losses(policy, rollout.select(images), advantages[images], part)
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
        uniforms = distribution.rollout_uniforms(
            image_ids,
            seed=self.args.seed,
            step=self.state.global_step,
            num_samples=self.sampling.num_samples,
            length=self.sampling.max_new_tokens,
        )
        self.model.eval()
        weights = nullcontext() if self.streamed_weights else unsharded(self.model)
        with torch.no_grad(), self.compute_loss_context_manager(), weights:
            features = None
            if self.feature_cache:
                features = self.feature_cache.features(policy, prompts.pixel_values, image_ids)
            result = run_rollout(
                policy,
                self.processor,
                prompts,
                self.sampling,
                uniforms,
                features,
                keep_prompt_cache=not (self.objective.prompt_gradient or self.late_rollouts),
            )
        self.model.train()
        return result

    def _policy(self, model: torch.nn.Module) -> Policy:
        if id(model) not in self._policies:
            self._policies = {
                id(model): policy_for(
                    model, self.processor, cuda_graphs=self.cuda_graphs, lockstep=self.streamed_weights
                )
            }
        return self._policies[id(model)]

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor:
        """Images of one optimizer step, over all micro-batches and processes."""
        sizes = [len(batch["input_ids"]) for batch in batch_samples if SPARE not in batch]
        count = torch.tensor(sum(sizes), device=device)
        return self.accelerator.gather(count).sum()

    def _num_captions(self, num_items_in_batch: torch.Tensor | None, micro_batch: int) -> torch.Tensor | int:
        images = micro_batch if num_items_in_batch is None else num_items_in_batch
        return images * self.sampling.num_samples

    def _backward_arguments(self) -> dict[str, Any]:
        """DeepSpeed would divide by the accumulation steps once more."""
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
