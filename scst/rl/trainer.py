"""Stage 2: self-critical sequence training of the adapter that the supervised stage made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from rewards.mixture import RewardMixture
from scst.adapters.loading import disable_dropout
from scst.data.collate import KEPT_FEATURES
from scst.data.columns import values_of
from scst.data.supervision import CaptionChoice
from scst.distributed.collectives import average_gradients, gradients_kept_on_error
from scst.distributed.launcher_environment import uses_deepspeed, uses_fsdp
from scst.distributed.processes import gather_numbers
from scst.distributed.sharded_loader import PADDING_EXAMPLE
from scst.distributed.sharded_weights import unsharded
from scst.errors import RecipeError
from scst.models.policy import Policy, policy_for, trains_prompt, trains_vision
from scst.models.prompts import PromptEncoder
from scst.rl.policy_loss import LossOutput, Objective, PolicyLoss, ScoringSettings, merged_metrics
from scst.rl.reward_log import beside_own
from scst.rl.reward_setup import set_up_rewards
from scst.rl.rewarder import Columns, RewardedRollout, Rewarder
from scst.rl.rollout_metrics import rollout_metrics
from scst.rl.sampler import Sampler
from scst.rl.unsupported_arguments import refuse_unsupported
from scst.rollout.feature_cache import FeatureCache, KeptFeatures
from scst.training.hooks import TrainerHooks
from scst.training.micro_batcher import MicroBatcher
from scst.training.step_metrics import Mean
from scst.training.validation import CaptionValidation
from scst.types import ImageFeatures, PromptBatch, Rollout, Sampling


@dataclass(frozen=True)
class ImageBatch:
    """Images of a micro-batch on the model's device.

    Attributes:
        prompts: what is conditioned on.
        columns: a value per image and column of the dataset, and the instructions as ``prompts``.
        is_padding: the images weigh nothing (:mod:`scst.distributed.sharded_loader`).
        kept: what the feature cache holds of the images; None without one.
    """

    prompts: PromptBatch
    columns: Columns
    is_padding: bool
    kept: KeptFeatures | None = None

    def __len__(self) -> int:
        return len(self.prompts)


class SCSTTrainer(TrainerHooks):
    """Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563) of an adapter.

    One step: sample K captions and the greedy one for every image, reward them, subtract the baseline, and
    descend -advantage * log p(caption). One update per rollout, so the gradient is on-policy and needs no
    importance ratio (but with ``one_step_off_policy``).

    Deviations from the paper: K samples per image instead of 1; the reward counts the end of sequence as a
    word when the policy emitted it; tokens that are no words (image placeholders, padding, ...) are removed
    from the distribution in sampling and scoring alike; dropout is off; only adapter weights change.

    The loss is the mean over captions of the sum over their tokens. It does not depend on how a batch is cut
    into micro-batches or spread over devices: draws are a function of (seed, step, image id). So when memory
    runs out, sampling or scoring continues with half the images at a time and the step is the same
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
        rewards: what is optimised: a mixture, or what it is made of (names, functions, entries of a recipe).
        objective: baseline and weights.
        scoring: how captions are scored.
        validation: caption metrics on held-out images, or None.
        choice: human caption for the cross-entropy term.
        feature_cache: keeps the image features of the training images over epochs; None to compute them.
        one_step_off_policy: learn from the captions of the micro-batch before; rewards are computed
            meanwhile.
        cuda_graphs: record the steps of decoding (:mod:`scst.rollout.static`).
        streams_weights: under ZeRO-3, gather weights layer by layer while sampling, in lockstep with all
            others.
        max_skipped_steps, callbacks: as of :class:`TrainerHooks`.

    Attributes:
        sampler, rewarder, policy_loss: the parts of a step.
        last_step: what the last micro-batch learnt from, for tables.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Any,
        data_collator: Any,
        processor: Any,
        sampling: Sampling | None = None,
        rewards: RewardMixture | Sequence[Any] = ("cider_d",),
        objective: Objective | None = None,
        scoring: ScoringSettings | None = None,
        validation: CaptionValidation | None = None,
        choice: CaptionChoice | None = None,
        feature_cache: FeatureCache | None = None,
        one_step_off_policy: bool = False,
        cuda_graphs: bool = False,
        streams_weights: bool = False,
        max_skipped_steps: int = 10,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        refuse_unsupported(vars(args))
        scoring = scoring or ScoringSettings()
        refuse_what_cannot_work(model, scoring)
        args.ddp_broadcast_buffers = False  # constants; a retried forward must not wait for other processes
        disable_dropout(model)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            processor=processor,
            validation=validation,
            max_skipped_steps=max_skipped_steps,
            callbacks=callbacks,
        )
        sampling, objective = sampling or Sampling(), objective or Objective()
        self.streams_weights = streams_weights
        if not isinstance(rewards, RewardMixture):
            rewards = set_up_rewards(RewardMixture(rewards), train_dataset)
        self.mixture = rewards
        self.encoder = PromptEncoder.of(processor)
        self.sampler = Sampler(
            self.encoder,
            sampling,
            seed=args.seed,
            feature_cache=feature_cache,
            keep_prompt_cache=not (scoring.prompt_gradient or one_step_off_policy),
        )
        self.rewarder = Rewarder(
            self.mixture, objective.baseline, one_step_off_policy=one_step_off_policy, recall=self._recall
        )
        self.policy_loss = PolicyLoss(
            model,
            self.encoder,
            sampling,
            objective,
            scoring,
            choice=choice or CaptionChoice("random", args.seed),
            autocast=self.compute_loss_context_manager,
            is_off_policy=one_step_off_policy,
            scores_always=self.has_collective_forward,
        )
        self.rollout_batches, self.loss_batches = _micro_batchers(
            scoring, can_split=not self.has_collective_forward
        )
        self.checkpointer.register("reward_functions", self.mixture.calls)
        self.checkpointer.register("rewarder", self.rewarder, rewinds=True)
        self.last_step: RewardedRollout | None = None
        self._micro_batches_of_step = 0
        self._policy: tuple[torch.nn.Module, Policy] | None = None
        self._cuda_graphs = cuda_graphs

    @property
    def batchers(self) -> dict[str, MicroBatcher]:
        """Those of sampling and of scoring."""
        return {"rollout": self.rollout_batches, "loss": self.loss_batches}

    def micro_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Sample, reward, compare, and add the gradient of one micro-batch.

        Args:
            model: the model, wrapped for its devices.
            inputs: a batch of :class:`scst.data.collate.SCSTCollator`.
            num_items: images of the whole optimizer step, over all micro-batches and processes.

        Returns:
            The loss, a scalar without gradient.
        """
        batch = self.to_device(inputs)
        policy = self.policy_of(model)
        with self.metrics.timed("rollout"), self.sampling_weights():
            rollout = self._sample(policy, batch)
        with self.metrics.timed("reward"):
            rewarded = self.rewarder(
                rollout,
                batch.columns,
                self.state,
                num_images=len(batch) if num_items is None else int(num_items),
                is_padding=batch.is_padding,
            )
        if rewarded is None:  # one-step off-policy: nothing to learn from yet
            return torch.zeros((), device=policy.device)
        with self.metrics.timed("loss"):
            outputs = self._backward(model, policy, rewarded)
        self._micro_batches_of_step += 1
        self._report(rewarded, outputs)
        self.metrics.count_images(0 if batch.is_padding else len(batch))
        return self._scale(rewarded) * torch.stack([output.losses.sum() for output in outputs]).sum()

    def to_device(self, inputs: dict[str, Any]) -> ImageBatch:
        """The record of a collated batch, its tensors on the model's device."""
        columns, is_padding = inputs.pop("columns"), bool(inputs.pop(PADDING_EXAMPLE, False))
        kept = inputs.pop(KEPT_FEATURES, None)
        fields: Any = self._prepare_inputs(inputs)
        return ImageBatch(PromptBatch(**fields), columns, is_padding, kept)

    def policy_of(self, model: torch.nn.Module) -> Policy:
        """The policy of a model that is wrapped for its devices; made once."""
        if self._policy is None or self._policy[0] is not model:
            settings = {"cuda_graphs": self._cuda_graphs, "lockstep": self.streams_weights}
            self._policy = (model, policy_for(model, self.encoder, **settings))
        return self._policy[1]

    @contextmanager
    def sampling_weights(self) -> Iterator[None]:
        """Eval mode, mixed precision, and whole weights on every process unless they are streamed."""
        self.model.eval()
        weights = nullcontext() if self.streams_weights else unsharded(self.model)
        with torch.no_grad(), self.compute_loss_context_manager(), weights:
            yield
        self.model.train()

    def _sample(self, policy: Policy, batch: ImageBatch) -> Rollout:
        """The rollout of a micro-batch, of as many images at a time as fit into memory."""
        image_ids, step = batch.columns["image_id"], self.state.global_step

        def sample(images: slice) -> Rollout:
            kept = batch.kept.select(images) if batch.kept else None
            return self.sampler.sample(policy, batch.prompts.select(images), image_ids[images], step, kept)

        rollouts = self.rollout_batches.map(sample, len(batch))
        return Rollout.join(rollouts, policy.pad_token_id)

    def _backward(
        self, model: torch.nn.Module, policy: Policy, rewarded: RewardedRollout
    ) -> list[LossOutput]:
        """Add the gradient of a micro-batch, of as many images at a time as fit into memory."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        wrapped = model if isinstance(model, torch.nn.parallel.DistributedDataParallel) else None
        advantages = rewarded.advantages.to(policy.device)
        settings = {"epoch": self.data_epoch}
        probes_kl = self._probes_kl()

        def backward(images: slice) -> LossOutput:
            columns = {name: values[images] for name, values in rewarded.columns.items()}
            with wrapped.no_sync() if wrapped else nullcontext(), gradients_kept_on_error(trainable):
                output = self.policy_loss(
                    policy,
                    rewarded.rollout.select(images),
                    advantages[images],
                    columns,
                    probes_kl=probes_kl and images.start == 0,
                    **settings,
                )
                loss = output.losses.sum() * self._scale(rewarded)
                # DeepSpeed would divide by the accumulation steps once more
                self.accelerator.backward(
                    loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {})
                )
            return LossOutput(output.losses.detach(), output.metrics)

        outputs = self.loss_batches.map(backward, len(rewarded.rollout))
        if wrapped is not None and self.accelerator.sync_gradients:
            average_gradients(trainable)
        return outputs

    def _scale(self, rewarded: RewardedRollout) -> float:
        """Factor from the sum over the captions of one process to the mean over all of the optimizer step."""
        num_captions = rewarded.num_images * self.sampler.sampling.num_samples
        return 0.0 if rewarded.is_padding else self.accelerator.num_processes / num_captions

    def _probes_kl(self) -> bool:
        """Whether this micro-batch is the first of a logged step, which reports the KL of its first image."""
        logs = (self.state.global_step + 1) % max(1, int(self.state.logging_steps or 1)) == 0
        is_first = self._micro_batches_of_step == 0
        return logs and is_first and (self.args.process_index == 0 or self.has_collective_forward)

    def _report(self, rewarded: RewardedRollout, outputs: list[LossOutput]) -> None:
        """Give what a micro-batch learnt from to the log."""
        self.metrics.add(
            {
                "micro_batch_rollout": Mean(self.rollout_batches.size(len(rewarded.rollout)), 1),
                "micro_batch_loss": Mean(self.loss_batches.size(len(rewarded.rollout)), 1),
            }
        )
        if rewarded.is_padding:
            return
        metrics = merged_metrics(outputs)
        if self.args.process_index != 0 and not self.policy_loss.objective.kl_weight:
            metrics.pop("kl", None)  # computed in lockstep only; the step's first image is in process 0
        own = rollout_metrics(rewarded.rollout, self.state.global_step) | rewarded.metrics | metrics
        self.metrics.add(own)
        self.metrics.add(beside_own(rewarded.logged, own))
        self.last_step = rewarded

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The micro-batches of a step, which begins here."""
        self._micro_batches_of_step = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Images of one optimizer step, over all micro-batches and processes."""
        sizes = [len(batch["input_ids"]) for batch in batch_samples if PADDING_EXAMPLE not in batch]
        return int(sum(numbers[0] for numbers in gather_numbers([sum(sizes)])))

    def write_tables(self, folder: Path) -> None:
        """Write the document frequencies of the rewards."""
        self.mixture.write_tables(folder)

    def close(self) -> None:
        """End the worker processes of the rewards."""
        self.mixture.close()

    def _recall(
        self, image_ids: Sequence[str], prompts: Sequence[str]
    ) -> tuple[PromptBatch, Columns, ImageFeatures | None]:
        """Prompts, columns and features of training images whose captions were sampled before a resume."""
        wanted = set(image_ids)
        ids = enumerate(values_of(self.train_dataset["image_id"]))
        rows = {str(image_id): row for row, image_id in ids if str(image_id) in wanted}
        inputs = self.data_collator.with_prompts(
            [self.train_dataset[rows[image_id]] for image_id in image_ids],
            prompts,  # of the epoch that they were drawn in
        )
        batch, policy = self.to_device(inputs), self.policy_of(self.model)
        self.policy_loss.skip_check()
        with torch.no_grad(), self.compute_loss_context_manager(), unsharded(self.model):
            trains = policy.vision_is_trainable
            cache = self.sampler.feature_cache
            features = None if trains or cache is not None else policy.image_features(batch.prompts)
            if cache is not None:
                features = cache.features(policy, batch.prompts, image_ids, batch.kept)
        return batch.prompts, batch.columns, features


def _micro_batchers(scoring: ScoringSettings, *, can_split: bool) -> tuple[MicroBatcher, MicroBatcher]:
    """Those of sampling and of scoring, with what to change when a single image is too much."""
    less = "a smaller max_new_tokens, quantization: nf4"
    sampling = MicroBatcher("sampling", f"fewer num_samples, {less}", can_split=can_split)
    advice = f"gradient_checkpointing: true, fewer num_samples, {less}"
    return sampling, MicroBatcher("scoring", advice, scoring.batch_size or None, can_split=can_split)


def refuse_what_cannot_work(model: torch.nn.Module, scoring: ScoringSettings) -> None:
    """Refuse adapters and settings that do not go together, or not with the launcher's way of dividing work.

    Raises:
        RecipeError: naming what to use instead.
    """
    if uses_fsdp() and trains_vision(model):  # it is scored outside of FSDP's root
        raise RecipeError(
            "the adapter reaches the vision tower or the projector, which self-critical training under "
            "FSDP2 cannot score: launch with recipes/accelerate/ddp.yaml or zero3.yaml"
        )
    if not scoring.prompt_gradient and trains_vision(model):
        raise RecipeError(
            "prompt_gradient: false trains nothing in the vision tower and the projector, but the "
            "adapter is there: train it with prompt_gradient: true"
        )
    if not scoring.prompt_gradient and trains_prompt(model):
        raise RecipeError(
            "prompt_gradient: false trains no prompt tokens, and the adapter has nothing else: train it "
            "with prompt_gradient: true"
        )
    if scoring.batch_size and (uses_fsdp() or uses_deepspeed()):
        raise RecipeError(
            "scoring_batch_size: under DeepSpeed and FSDP a micro-batch is scored whole; give a smaller "
            "per_device_train_batch_size and more gradient_accumulation_steps"
        )
