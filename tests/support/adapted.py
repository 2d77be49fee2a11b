"""Tiny models with an adapter of every type that already does something."""

from __future__ import annotations

import torch

from scst.adapters import kinds
from scst.adapters.new_adapter import add_adapter
from scst.adapters.prompt_tuning import encoder_for
from scst.models.policy import Policy, policy_for

KINDS = ("prompt_tuning", "prefix_tuning", "bottleneck")
N = 5


SPECS = {
    "lora": kinds.LoRA(targets="decoder-attention", rank=4, alpha=8.0),
    "bottleneck": kinds.Bottleneck(size=8),
    "prompt_tuning": kinds.PromptTuning(N, init_text="two planes"),
    "prefix_tuning": kinds.PrefixTuning(N, init_text="two planes"),
}


def new_adapter(kind, model, processor):
    """A model with a new adapter."""
    return add_adapter(model, processor, SPECS[kind], prompt="caption en")


def adapted(kind, model, processor, *, spread: float = 0.1):
    """Model and the encoder of its prompts, the adapter's weights moved from where they began."""
    model = new_adapter(kind, model, processor)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval(), encoder_for(model, processor)


def policy_of(model, processor) -> Policy:
    """The policy of a model."""
    return policy_for(model, processor)
