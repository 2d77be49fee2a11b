"""From dataset rows to the batches of the two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from scst.data.supervision import CaptionChoice
from scst.models.prompts import encode_captions, encode_prompts


class SFTCollator:
    """Rows to supervised batches: masked prompt, trained caption and ``<eos>``.

    Args:
        processor: a PaliGemma processor.
        prompt: the instruction.
        choice: which caption of an image is trained on.
        max_new_tokens: captions are cut to this many tokens.
    """

    def __init__(self, processor: Any, prompt: str, choice: CaptionChoice, max_new_tokens: int):
        self.processor = processor
        self.prompt = prompt
        self.choice = choice
        self.max_new_tokens = max_new_tokens
        self.epoch = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        captions = [self.choice.choose(row["references"], row["image_id"], self.epoch) for row in rows]
        return encode_captions(
            self.processor,
            [row["image"] for row in rows],
            [self.prompt] * len(rows),
            captions,
            max_new_tokens=self.max_new_tokens,
        )


class SCSTCollator:
    """Rows to prompts with everything a reward may want to know about them.

    The batch holds ``input_ids``, ``attention_mask``, ``pixel_values`` and ``columns``: every dataset column
    by name, images included, one value per image.

    Args:
        processor: a PaliGemma processor.
        prompt: the instruction.
    """

    def __init__(self, processor: Any, prompt: str):
        self.processor = processor
        self.prompt = prompt

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        prompts = [self.prompt] * len(rows)
        inputs = encode_prompts(self.processor, [row["image"] for row in rows], prompts)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"].bool(),
            "pixel_values": inputs["pixel_values"],
            "columns": columns | {"prompts": prompts},
        }
