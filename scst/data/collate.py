"""From dataset rows to the batches of the two stages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch

from scst.data.images import image_bytes, open_encoded
from scst.data.supervision import CaptionChoice, PromptChoice
from scst.models.prompts import PromptEncoder

KEPT_FEATURES = "kept_features"
"""Key of a batch: what a cache of features holds of its images."""


class _EpochOfAllWorkers:
    """The epoch of a collator, in memory that it shares with the copies in the workers of a loader.

    Persistent workers (``dataloader_persistent_workers``) keep the copy they were started with: a plain
    attribute that the training process sets at every epoch would stay 0 in them.
    """

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """Captions and prompts are drawn for this one."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)


class SFTCollator(_EpochOfAllWorkers):
    """Rows to supervised batches: masked prompt, trained caption and ``<eos>``.

    Args:
        processor: of any family, or a prompt encoder that knows the virtual tokens of an adapter.
        prompt: the instruction; with ``prompts`` it is used in evaluations only.
        choice: which caption of an image is trained on; its seed also draws the prompts.
        max_new_tokens: captions are cut to this many tokens.
        prompts: instructions to train on, one drawn per caption and epoch; none: ``prompt``.
    """

    def __init__(
        self,
        processor: Any,
        prompt: str,
        choice: CaptionChoice,
        max_new_tokens: int,
        prompts: Sequence[str] = (),
    ):
        super().__init__()
        self.encoder = PromptEncoder.of(processor)
        self.prompt = prompt
        self.prompts = PromptChoice(tuple(prompts) or (prompt,), choice.seed)
        self.choice = choice
        self.max_new_tokens = max_new_tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        captions = [self.choice.choose(row["references"], row["image_id"], self.epoch) for row in rows]
        examples = [f"{row['image_id']}:{caption}" for row, caption in zip(rows, captions, strict=True)]
        return self.encoder.encode_captions(
            [row["image"] for row in rows],
            [self.prompts.choose(example, self.epoch) for example in examples],
            captions,
            max_new_tokens=self.max_new_tokens,
        )

    def for_evaluation(self) -> SFTCollator:
        """A collator with the captions of epoch 0 and ``prompt``: every evaluation sees the same batches."""
        evaluating = copy.copy(self)
        evaluating._epoch = torch.zeros((), dtype=torch.long)
        evaluating.prompts = PromptChoice((self.prompt,))
        return evaluating


class SCSTCollator(_EpochOfAllWorkers):
    """Rows to prompts with everything a reward may want to know about them.

    The batch holds the fields of a :class:`scst.types.PromptBatch` and ``columns``: every dataset column by
    name, images included, one value per image, and the instruction as ``prompts``. All captions of an
    image, sampled and greedy, answer the same instruction.

    Args:
        processor: of any family, or a prompt encoder that knows the virtual tokens of an adapter.
        prompt: the instruction.
        prompts: instructions to train on, one drawn per image and epoch; none: ``prompt``.
        seed: of the draws.
        kept: ``(image ids, encoded images) ->`` what a cache of features holds of them, with ``features``
            per image or None. Rows then have encoded images, and those that it holds are not decoded.
    """

    def __init__(
        self,
        processor: Any,
        prompt: str,
        prompts: Sequence[str] = (),
        seed: int = 0,
        kept: Callable[[Sequence[str], Sequence[bytes]], Any] | None = None,
    ):
        super().__init__()
        self.encoder = PromptEncoder.of(processor)
        self.prompts = PromptChoice(tuple(prompts) or (prompt,), seed)
        self.kept = kept

    def for_evaluation(self) -> SCSTCollator:
        """This collator: evaluations of this stage caption images and use no training batches."""
        return self

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.with_prompts(rows, [self.prompts.choose(row["image_id"], self.epoch) for row in rows])

    def with_prompts(self, rows: Sequence[dict[str, Any]], prompts: Sequence[str]) -> dict[str, Any]:
        """The batch of rows with given instructions, one per row."""
        images, found = [row["image"] for row in rows], {}
        pictures = images
        if self.kept is not None:
            encoded = [image_bytes(image) for image in images]
            kept = self.kept([row["image_id"] for row in rows], encoded)
            found = {KEPT_FEATURES: kept}
            images = [open_encoded(data) for data in encoded]  # rewards decode them if they look
            pictures = [
                image if features is None else self.encoder.stand_in(image)
                for image, features in zip(images, kept.features, strict=True)
            ]
        batch = self.encoder.prompt_batch(pictures, prompts)
        columns = {name: [row[name] for row in rows] for name in rows[0]} | {"image": images}
        return {
            **{f.name: getattr(batch, f.name) for f in fields(batch)},
            "columns": columns | {"prompts": list(prompts)},
            **found,
        }
