"""Put a new adapter on a frozen model."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from peft import PeftModel

from scst.adapters import kinds
from scst.adapters.bottleneck import add_bottleneck
from scst.adapters.lora import add_lora
from scst.adapters.prefix_tuning import add_prefix_tuning
from scst.adapters.prompt_tuning import add_prompt_tuning
from scst.models.policy import base_model
from scst.models.prompts import first_tokens


def add_adapter(
    model: torch.nn.Module, processor: Any, adapter: kinds.Adapter, *, prompt: str, seed: int = 0
) -> PeftModel:
    """Wrap a frozen model with a new trainable adapter.

    Args:
        model: of any family.
        processor: its processor; the virtual tokens of prompt tuning are taken from its vocabulary.
        adapter: type and settings.
        prompt: the instruction that training will use; virtual tokens begin as its tokens by default.
        seed: of the initial weights; seeds all generators.

    Raises:
        RecipeError: on settings that fit no part of the model.
    """
    transformers.set_seed(seed)
    if isinstance(adapter, kinds.LoRA):
        return add_lora(
            model,
            targets=adapter.targets,
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            variant=adapter.variant,
            rank_pattern=adapter.rank_pattern,
        )
    if isinstance(adapter, kinds.Bottleneck):
        return add_bottleneck(model, size=adapter.size, places=adapter.places)
    vocab_size = base_model(model).config.get_text_config().vocab_size
    text = None if adapter.random_init else adapter.init_text or prompt
    tokens = first_tokens(processor, vocab_size, adapter.num_virtual_tokens, text=text, seed=seed)
    if isinstance(adapter, kinds.PromptTuning):
        return add_prompt_tuning(model, processor, tokens)
    return add_prefix_tuning(model, tokens)
