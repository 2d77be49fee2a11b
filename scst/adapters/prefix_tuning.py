"""Prefix tuning: trainable keys and values that every token of every decoder layer attends to.

Each layer's attention gets a cache that puts the prefix before what the real cache (or none) returns, and a
mask widened by as many visible columns. So the prefix is never stored in a cache, gradient checkpointing
recomputes it with its layer, and every mask and attention kernel of this project works with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.cache_utils import DynamicCache

from scst.adapters.kinds import PEFT_TYPES
from scst.adapters.peft_methods import AdapterLayer, LayerConfig, LayerTuner, register
from scst.models import masks
from scst.models.families.table import family_of
from scst.models.policy import base_model

PEFT_TYPE = PEFT_TYPES["prefix_tuning"]


@dataclass
class PrefixConfig(LayerConfig):
    """Settings of a prefix.

    Attributes:
        num_virtual_tokens: N, keys and values per layer.
        num_heads: key-value heads of a layer.
        head_dim: width of a head.
    """

    num_virtual_tokens: int = 0
    num_heads: int = 0
    head_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class Prefix(nn.Module):
    """Keys and values (heads, N, head_dim) of one layer."""

    def __init__(self, num_heads: int, num_virtual_tokens: int, head_dim: int):
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.keys = nn.Parameter(torch.zeros(num_heads, num_virtual_tokens, head_dim))
        self.values = nn.Parameter(torch.zeros(num_heads, num_virtual_tokens, head_dim))

    def forward(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, N, head_dim) for a batch ``like`` that of keys."""
        keys, values = (
            rows.to(like.dtype).expand(len(like), -1, -1, -1) for rows in (self.keys, self.values)
        )
        return keys, values


class PrefixedCache:
    """The cache for one call of one layer's attention: the prefix, then what the real cache returns.

    Args:
        prefix: of the layer.
        cache: the real cache, or None.
    """

    def __init__(self, prefix: Prefix, cache: Any | None):
        self.prefix, self.cache = prefix, cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, N + past + L, head_dim); only (B, heads, L, head_dim) are stored."""
        # The real cache first, so that it stores tokens only: it can be cut, reordered and repeated for other
        # captions without knowing of the prefix. Keys come with their rotary positions already applied.
        if self.cache is not None:
            key_states, value_states = self.cache.update(key_states, value_states, *args, **kwargs)
        keys, values = self.prefix(key_states)
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


class PrefixLayer(AdapterLayer):
    """The attention of a decoder layer, to which its prefix is always visible."""

    adapter_layer_names = ("virtual_prefix",)

    def new_weights(self, config: PrefixConfig) -> Prefix:
        """Empty keys and values, to be filled by :func:`add_prefix_tuning` or from a checkpoint."""
        return Prefix(config.num_heads, config.num_virtual_tokens, config.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        """The attention's output, and its weights without the columns of the prefix."""
        cache, mask, length = past_key_values, attention_mask, 0
        for prefix in self.active_weights():
            cache = PrefixedCache(prefix, cache)
            length += prefix.num_virtual_tokens
        if length and mask is None:
            mask = self._implied_mask(hidden_states, past_key_values)
        if length and mask is not None:
            # "visible" is True in a boolean mask and 0 in an additive one
            mask = nn.functional.pad(mask, (length, 0), value=mask.dtype is torch.bool)
        output, weights, *others = self.base_layer(
            hidden_states, *args, attention_mask=mask, past_key_values=cache, **kwargs
        )
        return output, weights if weights is None else weights[..., length:], *others

    def _implied_mask(self, states: torch.Tensor, cache: Any | None) -> torch.Tensor | None:
        """The mask that sdpa implies when given none: causal for several queries. None for other kernels."""
        length = states.shape[1]
        if length == 1 or self.base_layer.config._attn_implementation != "sdpa":
            return None
        past = 0 if cache is None else cache.get_seq_length(self.base_layer.layer_idx)
        seen = torch.ones(length, past + length, dtype=torch.bool, device=states.device)
        return seen.tril(past)[None, None]  # query i stands at place past + i and sees all up to itself


class PrefixTuner(LayerTuner):
    """The tuner that PEFT calls to wrap the layers."""

    prefix = "virtual_prefix"
    tuner_layer_cls = PrefixLayer


register(PrefixConfig, PrefixTuner, PEFT_TYPE)


def add_prefix_tuning(model: nn.Module, token_ids: torch.Tensor) -> PeftModel:
    """Wrap a frozen model with a new prefix (Li and Liang 2021, arXiv:2101.00190) in its decoder.

    The keys and values are trained directly, not through a network that produces them. They are initialised
    with those of real tokens, which that paper found to matter most with little data (section 7.4).

    Args:
        model: of any family.
        token_ids: (N,) tokens; the prefix is initialised with the keys and values that the model computes for
            them.
    """
    names = family_of(base_model(model)).names
    states = keys_and_values(model, token_ids)  # before wrapping: of the frozen model by itself
    num_heads, num_virtual_tokens, head_dim = states[0][0].shape
    config = PrefixConfig(
        task_type="CAUSAL_LM",
        target_modules=rf".*{re.escape(names.decoder)}\..*\.self_attn",
        num_virtual_tokens=num_virtual_tokens,
        num_heads=num_heads,
        head_dim=head_dim,
    )
    adapted = get_peft_model(model, config)
    layers = [module for module in adapted.modules() if isinstance(module, Prefix)]
    with torch.no_grad():
        for layer, (keys, values) in zip(layers, states, strict=True):
            layer.keys.copy_(keys)
            layer.values.copy_(values)
    return adapted


@torch.no_grad()
def keys_and_values(model: nn.Module, token_ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per decoder layer keys and values (heads, N, head_dim) of tokens (N,) that see each other."""
    inner = base_model(model)
    family = family_of(inner)
    decoder, embed = family.decoder(inner), inner.get_input_embeddings()
    ids = token_ids.to(embed.weight.device)[None]
    embeddings = embed(ids)
    seen = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
    cache = DynamicCache()
    decoder(
        inputs_embeds=embeddings,
        attention_mask=masks.for_attention(seen, decoder.config._attn_implementation, embeddings.dtype),
        # the prefix keeps these, whatever the prompt
        position_ids=torch.arange(ids.shape[1], device=ids.device)[None] + family.first_position,
        past_key_values=cache,
        use_cache=True,
    )
    layers: list[Any] = cache.layers
    return [(layer.keys[0], layer.values[0]) for layer in layers]
