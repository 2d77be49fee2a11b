"""Tiny models with an adapter of every type that already does something."""

from __future__ import annotations

import copy

import torch

from scst.adapters.bottleneck import add_bottleneck
from scst.adapters.lora import add_lora
from scst.adapters.prefix_tuning import add_prefix_tuning
from scst.adapters.prompt_tuning import add_prompt_tuning, use_virtual_tokens
from scst.models.policy import Policy
from scst.models.prompts import first_tokens, forbidden_token_mask

KINDS = ("prompt_tuning", "prefix_tuning", "bottleneck")
N = 5


def new_adapter(kind, model, processor):
    """A model with a new adapter, as the builders of the launch scripts make it."""
    if kind == "lora":
        return add_lora(model, targets="decoder-attention", rank=4, alpha=8.0)
    if kind == "bottleneck":
        return add_bottleneck(model, size=8)
    vocab_size = model.config.get_text_config().vocab_size
    tokens = first_tokens(processor, vocab_size, N, text="two planes", seed=0)
    if kind == "prompt_tuning":
        return add_prompt_tuning(model, processor, tokens)
    return add_prefix_tuning(model, tokens)


def adapted(kind, model, processor, *, spread: float = 0.1):
    """Model and its own processor, the adapter's weights moved from where they began."""
    processor = copy.deepcopy(processor)
    model = new_adapter(kind, model, processor)
    use_virtual_tokens(processor, model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval(), processor


def policy_of(model, processor) -> Policy:
    """The policy of a model."""
    forbidden = forbidden_token_mask(processor, model.config.get_text_config().vocab_size)
    return Policy(model, forbidden, processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id)
