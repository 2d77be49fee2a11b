"""Keys and values of a rollout: every prompt stored once, however many captions continue it.

The rows of an image (its greedy and its sampled captions) are decoded as extra query positions of *one*
sequence, so the cache has batch B and not B * (K + 1): attention kernels take that without copying the
prompt, because which row may see which column is a matter of the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in a buffer that is allocated once and filled from the left.

    transformers' ``DynamicLayer`` copies everything that it holds at every token; this one writes in place.

    Args:
        room: columns to allocate beyond those of the first update (the prompt).
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, L, D) and return all columns so far, as views."""
        start, end = self.length, self.length + key_states.shape[2]
        if start == 0:
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
            columns = states.shape[2] + self.room
            setattr(self, name, states.new_empty((*states.shape[:2], columns, states.shape[3])))
        self.is_initialized = True


class RolloutCache(Cache):
    """The cache of one rollout.

    Args:
        num_layers: of the decoder. All its layers attend to everything that the mask allows: sequences that
            a sliding window would cut are refused before (``Policy.check_length``).
        room: columns for generated tokens, per image.
    """

    def __init__(self, num_layers: int, room: int):
        super().__init__(layers=[BufferedLayer(room) for _ in range(num_layers)])

    def keep_images(self, kept: torch.Tensor) -> None:
        """Drop the images whose captions have all ended.

        Args:
            kept: (images in the cache,) bool.
        """
        if not kept.all():
            self.batch_select_indices(kept.nonzero().flatten())

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
