"""Builders of new adapters, of the type that a recipe names."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from scst.adapters.bottleneck import add_bottleneck
from scst.adapters.lora import add_lora
from scst.adapters.prefix_tuning import add_prefix_tuning
from scst.adapters.prompt_tuning import add_prompt_tuning
from scst.models.prompts import first_tokens


def new_adapter(recipe: Any, model: torch.nn.Module, processor: Any) -> torch.nn.Module:
    """The model with a new adapter, initialised from the recipe's seed.

    Raises:
        RecipeError: on settings that fit no part of the model.
    """
    transformers.set_seed(recipe.seed)
    if recipe.adapter_type == "lora":
        return add_lora(
            model,
            targets=recipe.lora_targets,
            rank=recipe.lora_rank,
            alpha=recipe.lora_alpha,
            dropout=recipe.lora_dropout,
            variant=recipe.lora_variant,
            rank_pattern=recipe.lora_rank_pattern,
        )
    if recipe.adapter_type == "bottleneck":
        return add_bottleneck(model, size=recipe.bottleneck_size, places=recipe.bottleneck_places)
    tokens = first_tokens(
        processor,
        model.config.get_text_config().vocab_size,
        recipe.num_virtual_tokens,
        text=(recipe.prompt_init_text or recipe.prompt) if recipe.prompt_init == "text" else None,
        seed=recipe.seed,
    )
    if recipe.adapter_type == "prompt_tuning":
        return add_prompt_tuning(model, processor, tokens)
    return add_prefix_tuning(model, tokens)
