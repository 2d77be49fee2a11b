"""SmolVLM, SmolVLM2 and Idefics3: tiles of a picture, shuffled to few tokens each."""

from __future__ import annotations

import math
from typing import Any

from scst.models.families.family import Family, ModuleNames, at_least


class SmolVLM(Family):
    """SmolVLM (Marafioti et al. 2025, arXiv:2504.05299) and Idefics3 (arXiv:2408.12637)."""

    processors = ("SmolVLMProcessor", "Idefics3Processor")
    varies_image_tokens = True
    names = ModuleNames(
        decoder="model.text_model",
        vision="model.vision_model",
        projector=("model.connector",),
        projector_linear=r"modality_projection\.proj",
    )
    vision_arguments = ("pixel_values", "pixel_attention_mask")

    def limit_image_tokens(self, processor: Any, count: int) -> None:
        """A picture is cut into at most k x k tiles beside the whole one, or not at all."""
        at_least(count, processor.image_seq_len)
        images, tiles = processor.image_processor, count // processor.image_seq_len
        side = math.isqrt(max(0, tiles - 1))
        images.do_image_splitting = side > 1
        if side > 1:
            longest = min(images.size["longest_edge"], side * images.max_image_size["longest_edge"])
            images.size = {"longest_edge": longest}
