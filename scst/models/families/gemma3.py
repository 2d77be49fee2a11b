"""Gemma 3 and MedGemma: causal text, an image whose tokens see each other, layers with a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scst.models.families.family import Family, ModuleNames
from scst.types import PromptBatch


class Gemma3(Family):
    """Gemma 3 (Gemma Team 2025, arXiv:2503.19786). Its projector is a bare matrix and no linear layer."""

    processors = ("Gemma3Processor",)
    tokens_are_grid = True
    window_cuts_blocks = True
    reserved_tokens = tuple(f"<unused{i}>" for i in range(1024))
    names = ModuleNames(
        projector_linear=None, projector_parameters=("multi_modal_projector.mm_input_projection_weight",)
    )

    def image_token_id(self, processor: Any) -> int:
        """That of the soft token; ``processor.image_token_id`` is the token in front of them."""
        return processor.tokenizer.image_token_id

    def block_ids(self, is_image: torch.Tensor) -> torch.Tensor:
        """Every run of image tokens is a block."""
        starts = is_image & ~nn.functional.pad(is_image, (1, 0))[:-1]
        return torch.where(is_image, starts.cumsum(0) - 1, -1)

    def forward_arguments(self, prompts: PromptBatch, length: int) -> dict[str, torch.Tensor]:
        """Type 1 on image tokens."""
        types = prompts.image_mask.long()
        return {"token_type_ids": nn.functional.pad(types, (0, length - types.shape[1]))}
