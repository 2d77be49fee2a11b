"""LLaVA 1.5 and LLaVA-OneVision: a causal prompt with one row of features per image token."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from scst.models.families.family import Family, at_least


class Llava(Family):
    """LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744): the patches of one picture of fixed size."""

    processors = ("LlavaProcessor",)
    tokens_are_grid = True


class LlavaOnevision(Family):
    """LLaVA-OneVision (Li et al. 2024, arXiv:2408.03326): the picture and tiles of it, cut to its shape."""

    processors = ("LlavaOnevisionProcessor",)
    varies_image_tokens = True
    vision_arguments = ("pixel_values", "image_sizes")

    def limit_image_tokens(self, processor: Any, count: int) -> None:
        """The grids of tiles are those that take no more beside the whole picture."""
        images, whole = processor.image_processor, processor.num_image_tokens
        tile, side = images.size["height"], math.isqrt(whole)

        def tokens(grid: list[int]) -> int:
            height, width = (side * (pixels // tile) for pixels in grid)
            return whole + height * (width + 1)  # and a token at the end of every row

        at_least(count, min(map(tokens, images.image_grid_pinpoints)))
        images.image_grid_pinpoints = [grid for grid in images.image_grid_pinpoints if tokens(grid) <= count]

    def take_image_sizes(self, model: nn.Module, processor: Any) -> None:
        """The model finds the tiles of a picture by its size and the grids."""
        config: Any = model.config
        config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints
