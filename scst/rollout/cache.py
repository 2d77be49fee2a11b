"""Keys and values of prompts, stored once, however many captions continue them.

The rows of an image (its greedy and its sampled captions) are decoded as extra query positions of *one*
sequence, so the cache has batch B and not B * (K + 1). Attention kernels take that without copying the
prompt: the mask alone decides which row sees which column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from scst.models import masks
from scst.models.policy import Policy
from scst.types import ImageFeatures, PromptBatch


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in a buffer that is allocated once and filled from the left.

    transformers' ``DynamicLayer`` copies everything that it holds at every token; this one writes in place.

    Args:
        capacity: columns to allocate beyond those of the first update (the prompt).
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.keys: Any = None  # transformers types them as optional tensors
        self.values: Any = None
        self.capacity = capacity
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, L, D) and return all columns so far, as views."""
        start, end = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self._allocate(key_states, value_states)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns that are filled."""
        return self.length

    def _allocate(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            columns = states.shape[2] + self.capacity
            setattr(self, name, states.new_empty((*states.shape[:2], columns, states.shape[3])))
        self.is_initialized = True


class RolloutCache(Cache):
    """The cache of one rollout.

    Args:
        num_layers: of the decoder. All keep every column: a mask hides those outside of a sliding window.
        capacity: columns for generated tokens, per image.
    """

    layers: list[Any]

    def __init__(self, num_layers: int, capacity: int):
        super().__init__(layers=[BufferedLayer(capacity) for _ in range(num_layers)])

    @classmethod
    def of_layers(cls, layers: Sequence[BufferedLayer]) -> RolloutCache:
        """A cache made of these layers."""
        cache = cls(0, 0)
        cache.layers = list(layers)
        return cache

    def keep_images(self, kept: torch.Tensor) -> None:
        """Drop the images whose captions have all ended.

        Args:
            kept: (images in the cache,) bool.
        """
        if not kept.all():  # selecting copies the whole cache: only when an image really leaves
            self.batch_select_indices(kept.nonzero().flatten())

    def prompts(self) -> torch.Tensor:
        """(B, layers, 2, heads, P, D) a copy of the filled columns. Call it right after the prefill."""
        pairs = [torch.stack([layer.keys, layer.values], 1)[..., : layer.length, :] for layer in self.layers]
        return torch.stack(pairs, 1)

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


class ConstantPrompt(Cache):
    """Keys and values of prompts as constants, for captions computed with gradients. Never written to.

    Args:
        prompt_cache: (B, layers, 2, heads, P, D) from :func:`prompt_cache`.
    """

    def __init__(self, prompt_cache: torch.Tensor):
        super().__init__(layers=[_ConstantLayer(*layer.unbind(1)) for layer in prompt_cache.unbind(1)])


class _ConstantLayer(DynamicLayer):
    """Keys and values (B, heads, P, D) of one layer; ``update`` returns them followed by the new ones."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.keys: Any = keys
        self.values: Any = values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, P + L, D): the prompt's, then the given ones (B, heads, L, D)."""
        # torch.cat instead of a write into a buffer: gradients flow through the new columns.
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def get_seq_length(self) -> int:
        """Columns of the prompt."""
        return self.keys.shape[2]


@torch.no_grad()
def prompt_cache(policy: Policy, prompts: PromptBatch, image_features: ImageFeatures) -> torch.Tensor:
    """(B, layers, 2, heads, P, D) keys and values of prompts, without gradient."""
    cache = RolloutCache(policy.text_config.num_hidden_layers, capacity=0)
    prefill(policy, prompts, image_features, cache)
    return cache.prompts()


def prefill(
    policy: Policy, prompts: PromptBatch, image_features: ImageFeatures, cache: RolloutCache
) -> torch.Tensor:
    """Fill a cache with prompts; returns the logits (B, 1, V) of the first caption token."""
    inputs = policy.from_prompts(prompts, image_features, masks.prompt_mask(prompts))
    return policy.forward(inputs, keep=1, cache=cache)
