"""Computes generation metrics during training: captions a fixed held-out set and scores the captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import EarlyStoppingCallback, ProcessorMixin, TrainerCallback, TrainingArguments

from rewards.scorers.text import caption_statistics
from scst.adapters.loaded import LoadedPolicy
from scst.data.load_splits import LoadedData
from scst.data.reference_columns import ReferenceColumns
from scst.distributed.sharded_loader import map_across_ranks
from scst.distributed.sharded_weights import unsharded
from scst.metrics.suite import METRICS, Corpus, MetricSettings, Scores
from scst.models.policy import base_model, evaluation_mode, policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout.greedy import greedy_captions
from scst.training.arguments.argument_checks import check_early_stopping
from scst.training.micro_batcher import MicroBatcher
from scst.training.phase_meter import PhaseMeter
from scst.training.unreadable_data import innermost_line, raise_together
from scst.types import Caption

logger = logging.getLogger(__name__)

MEMORY_TOLERANCE = 1.01
"""Ratio by which an evaluation may exceed the peak memory of training before its batches are halved.

Above 1, because the resident size of a process also counts memory that an allocator keeps for later.
"""


class CaptionValidation:
    """Captions a held-out set greedily and computes metrics of the captions.

    Args:
        processor: the checkpoint's processor, or a prompt encoder of it.
        dataset: rows with ``image``, ``references`` and ``image_id`` to caption.
        metrics: names in ``scst.metrics.suite.METRICS``.
        settings: models and tables of the metrics, e.g. document frequencies of the whole split.
        reward: returns the mean reward of captions, called with the columns of a reward call; None: none.
        prompt: the instruction.
        max_new_tokens: length limit in tokens, the end-of-sequence token included.
        min_new_tokens: captions cannot end before this many tokens.
        batch_size: number of images captioned together; halved when memory runs out.
    """

    def __init__(
        self,
        processor: ProcessorMixin | PromptEncoder,
        dataset: datasets.Dataset,
        *,
        metrics: Sequence[str],
        settings: MetricSettings,
        reward: Callable[..., float] | None = None,
        prompt: str,
        max_new_tokens: int,
        min_new_tokens: int = 1,
        batch_size: int = 16,
    ):
        self.encoder = PromptEncoder.of(processor)
        self.dataset = dataset
        self.prompt = prompt
        self.limits = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        self.batches = MicroBatcher("validation", "a smaller max_new_tokens", limit=batch_size)
        self._peak_gb = 0.0
        self.metrics = list(metrics)
        self.settings = settings
        self.reward = reward
        self.scores: dict[str, Scores] = {}
        """Scores of the last evaluation by metric, for the bootstrap of the monitors."""

    def __len__(self) -> int:
        return len(self.dataset)

    def run(self, model: torch.nn.Module) -> dict[str, float]:
        """Return metrics by name, and ``memory_gb``, the peak memory of the evaluation. Collective.

        Every process captions its shard of the images and returns the same metrics.

        Raises:
            UnreadableData: on all processes when one of them cannot read an image any more.
        """
        with PhaseMeter(base_model(model).device).measure("validation") as usage:
            with unsharded(model):
                captions = self._captions(model)
            metrics, fault = {}, None
            try:
                metrics = self._metrics(captions)
            except OSError as error:  # a metric that looks at images
                fault = innermost_line(error)
            raise_together(fault)
        self._peak_gb = usage.peak_gb
        return metrics | {"memory_gb": usage.peak_gb}

    def keep_within(self, training_gb: float) -> None:
        """Halve the images per batch when the last evaluation needed more memory than training does.

        Args:
            training_gb: peak memory of a training step in GB; 0 when it is not known.
        """
        too_much = training_gb and self._peak_gb > training_gb * MEMORY_TOLERANCE
        if too_much and self.batches.limit != 1:
            self.batches.limit = max(1, self.batches.size(len(self)) // 2)
            logger.warning(
                "an evaluation took %.2f GB, a training step %.2f GB: from now on %d images at a time",
                *(self._peak_gb, training_gb, self.batches.limit),
            )

    def _captions(self, model: torch.nn.Module) -> list[Caption]:
        """Captions of all images; a process whose images cannot be read takes part in the exchange, too."""
        faults: list[str] = []

        def caption(rows: Sequence[int]) -> list[Caption]:
            try:
                return self._caption(model, rows)
            except OSError as error:
                faults.append(innermost_line(error))
                return [Caption("", ended_by_eos=False, num_tokens=0)] * len(rows)

        captions = map_across_ranks(caption, len(self.dataset))
        raise_together(faults[0] if faults else None)
        return captions

    def _caption(self, model: torch.nn.Module, rows: Sequence[int]) -> list[Caption]:
        images = self.dataset.select(rows)["image"]
        policy = policy_for(model, self.encoder)

        def caption(part: slice) -> list[Caption]:
            pictures = [images[i] for i in range(part.start, part.stop)]
            prompts = self.encoder.prompt_batch(pictures, [self.prompt] * len(pictures))
            return [Caption(*each) for each in greedy_captions(policy, self.encoder, prompts, **self.limits)]

        with evaluation_mode(model):
            return [each for part in self.batches.map(caption, len(rows)) for each in part]

    def _metrics(self, captions: list[Caption]) -> dict[str, float]:
        texts = [caption.text for caption in captions]
        ended = [caption.ended_by_eos for caption in captions]
        columns = {name: self.dataset[name] for name in self.dataset.column_names}
        references, image_ids = columns["references"][:], columns["image_id"][:]
        corpus = Corpus(texts, references, columns["image"], image_ids, ended, self.settings)
        self.scores = {name: METRICS[name].score(corpus) for name in self.metrics}
        values = {"ended_by_eos": sum(ended) / len(ended), **caption_statistics(texts)}
        values |= {name: scores.value for name, scores in self.scores.items()}
        if self.reward is not None:
            prompts = [self.prompt] * len(texts)
            values["reward"] = self.reward(completions=texts, prompts=prompts, ended_by_eos=ended, **columns)
        return values


@dataclass(frozen=True)
class ValidationSettings:
    """Which images every evaluation during training captions, and when training stops early.

    Attributes:
        split: name of the held-out split.
        images: size of the fixed random subset that is captioned.
        batch_size: images captioned together; 0: as many as in a training micro-batch.
        seed: seed of the subset.
        early_stopping_patience: stop after this many evaluations without an improvement of
            ``metric_for_best_model``; None: never.
    """

    split: str = "val"
    images: int = 200
    batch_size: int = 0
    seed: int = 0
    early_stopping_patience: int | None = None

    def build(
        self,
        policy: LoadedPolicy,
        data: LoadedData,
        args: TrainingArguments,
        *,
        metrics: Sequence[str] = ("cider_d",),
        reward: Callable[..., float] | None = None,
    ) -> CaptionValidation | None:
        """Build the validation of a trainer; None when its arguments ask for no evaluation."""
        if args.eval_strategy == "no":
            return None
        rows = data.splits[self.split]
        frequencies = ReferenceColumns(rows).document_frequencies("omitted", self.split)
        return CaptionValidation(
            policy.encoder,
            rows.shuffle(seed=self.seed).select(range(min(self.images, len(rows)))),
            metrics=metrics,
            settings=MetricSettings(frequencies=frequencies),
            reward=reward,
            prompt=policy.prompt,
            max_new_tokens=policy.max_new_tokens,
            min_new_tokens=policy.min_new_tokens,
            batch_size=self.batch_size or args.per_device_train_batch_size,
        )


def early_stopping(validation: ValidationSettings, training: Mapping[str, Any]) -> list[TrainerCallback]:
    """The callback of early stopping in a list, which is empty when the settings do not ask for it.

    Raises:
        RecipeError: when the training arguments ask for no evaluation.
    """
    if validation.early_stopping_patience is None:
        return []
    check_early_stopping(validation.early_stopping_patience, training)
    return [EarlyStoppingCallback(validation.early_stopping_patience)]
