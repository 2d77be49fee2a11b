"""Generation metrics during training: caption a fixed held-out set and score it, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.trainer_utils import EvalLoopOutput

from rewards.text import caption_statistics
from scst.evaluation.captioning import Caption, caption_images


class CaptionValidation:
    """Greedy captions of a held-out set, scored without Java.

    Args:
        processor: a PaliGemma processor.
        dataset: rows with ``image`` and ``references`` to caption.
        cider_d: CIDEr-D of a caption against its references, as it is reported: without end-of-sequence
            words, document frequencies over the references of the whole split.
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
        cider_d: Callable[[str, Sequence[str]], float],
        prompt: str,
        max_new_tokens: int,
        min_new_tokens: int = 1,
        batch_size: int = 16,
    ):
        self.processor = processor
        self.dataset = dataset
        self.prompt = prompt
        self.generation = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "batch_size": batch_size,
        }
        self.cider_d = cider_d

    def __len__(self) -> int:
        return len(self.dataset)

    def run(self, model: torch.nn.Module, accelerator: Any) -> dict[str, float]:
        """Metrics by name; every process captions its share of the images and returns the same metrics."""
        with accelerator.split_between_processes(list(range(len(self.dataset)))) as rows:
            captions = self._caption(model, rows) if rows else []
        if accelerator.num_processes > 1:
            captions = gather_object(captions)
        return self._metrics(captions)

    def _caption(self, model: torch.nn.Module, rows: list[int]) -> list[Caption]:
        images = self.dataset.select(rows)["image"]
        return caption_images(model, self.processor, images, self.prompt, "greedy", **self.generation)

    def _metrics(self, captions: list[Caption]) -> dict[str, float]:
        texts = [caption.text for caption in captions]
        references = self.dataset["references"]
        scores = [self.cider_d(text, refs) for text, refs in zip(texts, references, strict=True)]
        return {
            "cider_d": sum(scores) / len(scores),
            "ended_by_eos": sum(caption.ended_by_eos for caption in captions) / len(captions),
            **caption_statistics(texts),
        }


class CaptionValidationMixin:
    """Adds caption metrics to the evaluations of a ``transformers.Trainer``: set ``self.validation``.

    They are computed inside ``evaluation_loop``, so logging, best-checkpoint selection
    (``metric_for_best_model: cider_d``) and early stopping see them.
    """

    validation: CaptionValidation
    computes_eval_loss = True

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The loss of the trainer, where it has one on held-out data, and caption metrics."""
        if self.computes_eval_loss:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        else:
            output = EvalLoopOutput(None, None, {}, len(self.validation))
        with self.accelerator.autocast():
            metrics = self.validation.run(self.accelerator.unwrap_model(self.model), self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output
