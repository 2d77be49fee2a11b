"""InternVL 3: the tiles of a picture in a row, and a thumbnail of it."""

from __future__ import annotations

from typing import Any

from scst.models.families.family import Family, ModuleNames, at_least


class InternVL(Family):
    """InternVL 3 (Zhu et al. 2025, arXiv:2504.10479), as transformers has it (``...-hf`` checkpoints)."""

    processors = ("InternVLProcessor",)
    varies_image_tokens = True
    several_rows_per_image = True
    names = ModuleNames(
        vision_linear=r"attention\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.fc[12]",
        vision_qv=r"attention\.(q|v)_proj",
    )

    def limit_image_tokens(self, processor: Any, count: int) -> None:
        """A picture is one tile, or several and a thumbnail."""
        at_least(count, processor.image_seq_length)
        images = processor.image_processor
        images.max_patches = max(1, count // processor.image_seq_length - 1)
        images.min_patches = min(images.min_patches, images.max_patches)
