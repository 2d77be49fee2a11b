"""Qwen2.5-VL and Qwen3-VL: patches at the picture's own size, positions in time, height and width."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from scst.models.families.family import Family, ModuleNames, Vision, at_least
from scst.types import ImageFeatures, PromptBatch


class Qwen2VL(Family):
    """Qwen2-VL (Wang et al. 2024, arXiv:2409.12191) and Qwen2.5-VL (arXiv:2502.13923)."""

    processors: ClassVar[tuple[str, ...]] = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
    varies_image_tokens = True
    names = ModuleNames(
        vision="model.visual",
        projector=("model.visual.merger",),
        vision_linear=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj|fc1|fc2))",
        vision_qv=r"attn\.qkv",
        projector_linear=r"mlp\.[02]",
    )
    vision_arguments = ("pixel_values", "image_grid_thw")

    def limit_image_tokens(self, processor: Any, count: int) -> None:
        """Pictures are made smaller: a token is ``merge_size`` x ``merge_size`` patches."""
        at_least(count, 4)
        images = processor.image_processor
        area = (images.patch_size * images.merge_size) ** 2
        shortest = min(images.size["shortest_edge"], count * area)  # both are numbers of pixels
        images.size = {"shortest_edge": shortest, "longest_edge": count * area}

    def position_ids(
        self, processor: Any, ids: torch.Tensor, is_image: torch.Tensor, vision: Vision
    ) -> torch.Tensor:
        """Multimodal rotary positions (arXiv:2409.12191, section 2.1): text counts alike on all axes; the
        tokens of an image share one time and count rows and columns; text goes on behind the largest."""
        merge = processor.image_processor.merge_size
        _, height, width = (vision["image_grid_thw"][0] // torch.tensor([1, merge, merge])).tolist()
        first = int(is_image.int().argmax())
        place = torch.arange(height * width)
        image = torch.stack([torch.zeros_like(place), place // width, place % width]) + first
        behind = torch.arange(len(ids) - first - height * width) + first + max(height, width)
        before = torch.arange(first)
        return torch.cat([before.expand(3, -1), image, behind.expand(3, -1)], 1)

    def forward_arguments(self, prompts: PromptBatch, length: int) -> dict[str, torch.Tensor]:
        """Type 1 on image tokens."""
        types = prompts.image_mask.int()
        return {"mm_token_type_ids": nn.functional.pad(types, (0, length - types.shape[1]))}


class Qwen3VL(Qwen2VL):
    """Qwen3-VL (arXiv:2511.21631): features of earlier vision layers are added in the first decoder layers
    (DeepStack, arXiv:2406.04334)."""

    processors: ClassVar[tuple[str, ...]] = ("Qwen3VLProcessor",)
    names = ModuleNames(
        vision="model.visual",
        projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
        vision_linear=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        vision_qv=r"attn\.qkv",
        projector_linear=r"(\d+\.)?linear_fc[12]",
    )

    def decoder_arguments(self, prompts: PromptBatch, features: ImageFeatures, length: int) -> dict[str, Any]:
        """The additional features, and where they are added."""
        image = nn.functional.pad(prompts.image_mask, (0, length - prompts.image_mask.shape[1]))
        levels = [
            torch.cat([image_features[level] for image_features in features])
            for level in range(1, len(features[0]))
        ]
        return {"visual_pos_masks": image, "deepstack_visual_embeds": levels}

    def _levels(self, made: Any) -> list[Any]:
        return [made.pooler_output, *made.deepstack_features]
