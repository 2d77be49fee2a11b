"""Builds the settings of a new adapter from a recipe."""

from __future__ import annotations

from scst.adapters import kinds
from scst.config.recipes import SFTRecipe


def adapter_of(recipe: SFTRecipe) -> kinds.Adapter:
    """Type and settings of the new adapter that a recipe describes."""
    if recipe.adapter_type == "lora":
        return kinds.LoRA(
            rank=recipe.lora_rank,
            alpha=recipe.lora_alpha,
            targets=recipe.lora_targets,
            dropout=recipe.lora_dropout,
            variant=recipe.lora_variant,
            rank_pattern=recipe.lora_rank_pattern,
        )
    if recipe.adapter_type == "bottleneck":
        return kinds.Bottleneck(size=recipe.bottleneck_size, places=recipe.bottleneck_places)
    tuning = kinds.PromptTuning if recipe.adapter_type == "prompt_tuning" else kinds.PrefixTuning
    return tuning(
        num_virtual_tokens=recipe.num_virtual_tokens,
        init_text=recipe.prompt_init_text,
        random_init=recipe.prompt_init == "random",
    )
