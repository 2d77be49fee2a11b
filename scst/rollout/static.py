"""Decode steps of one shape, replayed as a CUDA graph: small steps are bound by kernel launches otherwise.

All buffers are made once per (images, prompt length, rows, tokens) and written in place, so that a recorded
step can be replayed for every later rollout of the same shape. The price: finished rows are computed too.
Off unless a recipe asks for it (``cuda_graphs: true``). When recording fails, or a replay disagrees with the
step that was recorded, decoding logs that and continues without a graph.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from scst.models import masks
from scst.models.policy import Policy
from scst.rollout.cache import BufferedLayer, RolloutCache, prefill
from scst.rollout.decode_state import Slots
from scst.types import ImageFeatures, PromptBatch

logger = logging.getLogger(__name__)

KEPT_SHAPES = 2
"""Shapes whose buffers and graphs are kept: that of training, and that of its last, smaller batch."""


class StaticSteps:
    """Decode steps of B images and R rows in tensors of fixed addresses, as CUDA graphs need them.

    Args:
        policy: the model.
        num_images: B.
        num_axes: A, of positions.
        prompt_length: P.
        num_rows: R = K + 1.
        max_new_tokens: length limit.
    """

    def __init__(
        self,
        policy: Policy,
        num_images: int,
        num_axes: int,
        prompt_length: int,
        num_rows: int,
        max_new_tokens: int,
    ):
        self.policy, self.prompt_length = policy, prompt_length
        capacity = num_rows * (max_new_tokens - 1)
        self.tokens = torch.zeros(num_images, num_rows, dtype=torch.long, device=policy.device)
        self.last_positions = self.tokens.new_zeros(num_images, num_axes)
        self.distance = self.tokens.new_zeros(())
        self.visible = self.tokens.new_zeros((num_images, num_rows, capacity), dtype=torch.bool)
        self.columns = torch.zeros(num_rows, dtype=torch.long, device=policy.device)
        layers = range(policy.text_config.num_hidden_layers)
        self.cache = RolloutCache.of_layers([StaticLayer(capacity, self.columns) for _ in layers])
        self.prompt_mask = torch.zeros(num_images, prompt_length, dtype=torch.bool, device=policy.device)
        self.records = policy.device.type == "cuda"
        self.graph: Any | None = None
        self.logits: Any = None  # of a replayed step, always in the same memory

    def begin(self, prompts: PromptBatch) -> None:
        """Start a rollout of other prompts of the same shape."""
        self.prompts = prompts
        self.prompt_mask.copy_(prompts.attention_mask)
        self.last_positions.copy_(prompts.last_positions)
        self.visible.zero_()
        # A static step attends to every column and masks those not written yet. Their weight is 0, but
        # 0 * NaN is NaN: a NaN that an earlier rollout left there would spoil this one.
        for layer in self.cache.layers:
            layer.clear()

    def prefill(self, image_features: ImageFeatures) -> torch.Tensor:
        """Logits (B, 1, V) of the first token."""
        return prefill(self.policy, self.prompts, image_features, self.cache)

    def step(self, slots: Slots, step: int) -> torch.Tensor:
        """Logits (B, R, V) of the next token of every row, ``step`` tokens after the prompt."""
        num_rows = self.tokens.shape[1]
        self.tokens.copy_(slots.tokens)
        self.distance.fill_(step)
        self.visible[:, :, : slots.visible.shape[2]] = slots.visible.to(self.visible.device)
        first = self.prompt_length + (step - 1) * num_rows
        self.columns.copy_(torch.arange(first, first + num_rows))
        if self.records:
            self.records = False
            self.graph = self._recorded()
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        return self.logits

    def _forward(self) -> torch.Tensor:
        device = self.policy.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Without autocast's cache of weights: a recorded step must contain its own casts.
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            mask = masks.slot_mask(self.prompt_mask, self.visible)
            inputs = self.policy.behind(self.last_positions, mask, self.tokens, self.distance)
            return self.policy.forward(inputs, keep=self.tokens.shape[1], cache=self.cache)

    def _recorded(self) -> Any | None:
        """The graph of a step, replayed once and compared; None where that fails."""
        try:
            expected = self._forward().clone()
            graph = self._record()
            graph.replay()
            if not torch.allclose(self.logits, expected, rtol=1e-3, atol=1e-3):
                gap = (self.logits - expected).abs().max().item()
                raise RuntimeError(f"the logits of a replayed step differ by {gap:.3g}")
            return graph
        except RuntimeError as error:  # of CUDA: an operation that cannot be recorded, or memory
            self.logits = None
            logger.warning("cuda_graphs: decoding goes on without: %s", str(error).splitlines()[0])
            return None

    def _record(self) -> torch.cuda.CUDAGraph:
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._forward()
        return graph


class StaticLayer(BufferedLayer):
    """Keys and values of one layer: the prompt first, then columns whose indices are in a tensor.

    The indices are a tensor because a recorded graph replays the same Python arguments every time.

    Args:
        capacity: columns beyond those of the prompt.
        columns: (R,) indices of the columns that the next update writes.
    """

    def __init__(self, capacity: int, columns: torch.Tensor):
        super().__init__(capacity)
        self.columns = columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, L, D) and return all columns; of the first update (the prompt) its own only."""
        if not self.is_initialized:
            self._allocate(key_states, value_states)
            self.clear()  # fresh memory may hold NaN
        if self.length == 0:
            return super().update(key_states, value_states)
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values

    def clear(self) -> None:
        """Forget all columns and zero them."""
        self.length = 0
        if self.is_initialized:
            self.keys.zero_()
            self.values.zero_()


def steps_for(policy: Policy, prompts: PromptBatch, num_rows: int, max_new_tokens: int) -> StaticSteps | None:
    """Static steps for these prompts, reused where the shape is known; None without ``cuda_graphs``."""
    if not policy.cuda_graphs:
        return None
    device = policy.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shape = (*prompts.position_ids.shape, num_rows, max_new_tokens)
    kept = policy.static_steps
    steps = kept.pop((shape, dtype), None) or StaticSteps(policy, *shape)
    kept[shape, dtype] = steps
    while len(kept) > KEPT_SHAPES:
        kept.pop(next(iter(kept)))
    steps.begin(prompts)
    return steps
