"""Generation metrics during training: caption a fixed held-out set and score it, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from rewards.scorers.text import caption_statistics
from scst.adapters.prompt_tuning import encoder_for
from scst.distributed.sharded_loader import done_together
from scst.distributed.sharded_weights import unsharded
from scst.evaluation.captioning import Caption, evaluation_mode
from scst.metrics.suite import METRICS, Corpus, MetricSettings, Scores
from scst.models.policy import policy_for
from scst.rollout.greedy import greedy_captions
from scst.training.memory import FittingParts, PhaseMeter

logger = logging.getLogger(__name__)

MEMORY_TOLERANCE = 1.01
"""Of the resident size of a process, which also counts what an allocator keeps for later."""


class CaptionValidation:
    """Greedy captions of a held-out set and their metrics.

    Args:
        processor: a PaliGemma processor.
        dataset: rows with ``image``, ``references`` and ``image_id`` to caption.
        metrics: names in ``scst.metrics.suite.METRICS``.
        settings: what they need, e.g. document frequencies over the references of the whole split.
        reward: gives the captions' mean reward from the columns of a reward call; None to leave it out.
        prompt: the instruction.
        max_new_tokens: length limit.
        min_new_tokens: captions cannot end earlier.
        batch_size: images captioned together.
    """

    def __init__(
        self,
        processor: Any,
        dataset: Any,
        *,
        metrics: Sequence[str],
        settings: MetricSettings,
        reward: Callable[..., float] | None = None,
        prompt: str,
        max_new_tokens: int,
        min_new_tokens: int = 1,
        batch_size: int = 16,
    ):
        self.processor = processor
        self.dataset = dataset
        self.prompt = prompt
        self.limits = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        self.parts = FittingParts("validation", "a smaller max_new_tokens", limit=batch_size)
        self.metrics = list(metrics)
        self.settings = settings
        self.reward = reward
        self.scores: dict[str, Scores] = {}
        """Of the last evaluation, by metric: to resample them."""

    def __len__(self) -> int:
        return len(self.dataset)

    def run(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics by name; every process captions its share of the images and returns the same metrics."""
        with unsharded(model):
            captions = done_together(lambda rows: self._caption(model, rows), len(self.dataset))
        return self._metrics(captions)

    def use_less_memory(self) -> None:
        """Half the images at a time from now on."""
        self.parts.limit = max(1, self.parts.size(len(self)) // 2)

    def _caption(self, model: torch.nn.Module, rows: Sequence[int]) -> list[Caption]:
        images = self.dataset.select(rows)["image"]
        captions: list[Caption] = []
        policy, encoder = policy_for(model, self.processor), encoder_for(model, self.processor)

        def caption(part: slice) -> None:
            pictures = [images[i] for i in range(part.start, part.stop)]
            prompts = encoder.prompt_batch(pictures, [self.prompt] * len(pictures))
            captions.extend(Caption(*c) for c in greedy_captions(policy, encoder, prompts, **self.limits))

        with evaluation_mode(model):
            self.parts.run(len(rows), caption)
        return captions

    def _metrics(self, captions: list[Caption]) -> dict[str, float]:
        texts = [caption.text for caption in captions]
        ended = [caption.ended_by_eos for caption in captions]
        columns = {name: self.dataset[name] for name in self.dataset.column_names}
        references, image_ids = list(columns["references"]), list(columns["image_id"])
        corpus = Corpus(texts, references, columns["image"], image_ids, ended, self.settings)
        self.scores = {name: METRICS[name].score(corpus) for name in self.metrics}
        values = {"ended_by_eos": sum(ended) / len(ended), **caption_statistics(texts)}
        values |= {name: scores.value for name, scores in self.scores.items()}
        if self.reward is not None:
            prompts = [self.prompt] * len(texts)
            values["reward"] = self.reward(completions=texts, prompts=prompts, ended_by_eos=ended, **columns)
        return values


class CaptionValidationMixin:
    """Adds caption metrics to the evaluations of a ``transformers.Trainer``: set ``self.validation``.

    They are computed inside ``evaluation_loop``, so logging, best-checkpoint selection
    (``metric_for_best_model: cider_d``) and early stopping see them. ``eval_memory_gb`` is their peak memory.
    """

    validation: CaptionValidation
    phases: PhaseMeter
    computes_eval_loss = True

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The loss of the trainer, where it has one on held-out data, and caption metrics."""
        if self.computes_eval_loss:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        else:
            output = EvalLoopOutput(None, None, {}, len(self.validation))
        meter = PhaseMeter(self.args.device)
        with self.accelerator.autocast(), meter.measure("validation") as usage:
            metrics = self.validation.run(self.accelerator.unwrap_model(self.model))
        metrics["memory_gb"] = usage.peak_gb
        self._keep_within_training(usage.peak_gb)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _keep_within_training(self, peak_gb: float) -> None:
        """Caption fewer images at a time when an evaluation took more memory than the training steps."""
        training = max(self.phases.peak_gb.values(), default=0.0)
        if training and peak_gb > training * MEMORY_TOLERANCE and self.validation.parts.limit != 1:
            self.validation.use_less_memory()
            logger.warning(
                "an evaluation took %.2f GB, a training step %.2f GB: from now on %d images at a time",
                *(peak_gb, training, self.validation.parts.limit),
            )
