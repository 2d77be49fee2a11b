"""PaliGemma and PaliGemma 2: a prefix language model, whose prompt is bidirectional."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import nn

from scst.models.families.family import Family, ModuleNames, Vision
from scst.types import PromptBatch


class PaliGemma(Family):
    """The image, the instruction and a newline, all of which see each other; positions are counted from 1."""

    processors = ("PaliGemmaProcessor",)
    tokens_are_grid = True
    tokens_are_patches = True
    names = ModuleNames(projector_linear="linear")
    first_position = 1
    reserved_tokens = (*(f"<seg{i:03}>" for i in range(128)), *(f"<loc{i:04}>" for i in range(1024)))

    def prompt_text(self, processor: Any, instruction: str) -> str:
        """The processor adds the beginning of sequence and the newline itself."""
        return "<image>" + instruction

    def answer_frame(self, processor: Any) -> tuple[str, int]:
        """There is no chat: a caption follows the newline and ends with ``<eos>``."""
        return "", processor.tokenizer.eos_token_id

    def encode_prompt(self, processor: Any, image: Image.Image, text: str) -> tuple[list[int], Vision]:
        """As the processor makes them."""
        made = processor(text=[text], images=[image], return_tensors="pt")
        return made["input_ids"][0].tolist(), {"pixel_values": made["pixel_values"]}

    def block_ids(self, is_image: torch.Tensor) -> torch.Tensor:
        """The whole prompt is one block."""
        return torch.zeros(is_image.shape, dtype=torch.long)

    def final_logits(self, model: Any, logits: torch.Tensor) -> torch.Tensor:
        """Bounded where the model's own ``forward`` bounds them.

        Gemma 2 bounds its logits, but not every version of transformers does so in PaliGemma 2: the source of
        its ``forward`` decides.
        """
        bound = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if bound is None or not _bounds_logits(type(model).forward):
            return logits
        return torch.tanh(logits / bound) * bound

    def forward_arguments(self, prompts: PromptBatch, length: int) -> dict[str, torch.Tensor]:
        """Type 0 on the prompt, 1 behind it. With the types left out, one attention kernel makes the prompt
        causal and another lets it see later tokens."""
        types = torch.zeros_like(prompts.input_ids)
        return {"token_type_ids": nn.functional.pad(types, (0, length - types.shape[1]), value=1)}


@functools.cache
def _bounds_logits(forward: Callable[..., Any]) -> bool:
    return "final_logit_softcapping" in inspect.getsource(forward)
