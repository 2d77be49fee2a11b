"""SmolVLM, SmolVLM2 and Idefics3: tiles of a picture, shuffled to few tokens each."""

from __future__ import annotations

from scst.models.families.family import Family, ModuleNames


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
