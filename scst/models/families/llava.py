"""LLaVA 1.5 and LLaVA-OneVision: a causal prompt with one row of features per image token."""

from __future__ import annotations

from scst.models.families.family import Family


class Llava(Family):
    """LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744): the patches of one picture of fixed size."""

    processors = ("LlavaProcessor",)
    tokens_are_grid = True


class LlavaOnevision(Family):
    """LLaVA-OneVision (Li et al. 2024, arXiv:2408.03326): the picture and tiles of it, cut to its shape."""

    processors = ("LlavaOnevisionProcessor",)
    varies_image_tokens = True
    vision_arguments = ("pixel_values", "image_sizes")
