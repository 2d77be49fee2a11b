"""Attention masks: who sees whom, built here so that it is the same on every library version and family.

A caption sees its prompt and its own earlier tokens; nothing in a prompt sees a caption. Within a prompt,
tokens are causal, but those of one block (``PromptBatch.block_ids``) see each other both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scst.types import PromptBatch


@dataclass(frozen=True)
class AttentionMask:
    """Which key each query attends to.

    Attributes:
        causal: (B, 1, L, L_keys) bool, True on the keys at or before a query that it sees. Of all keys that a
            query sees, the later ones come later in this axis.
        block: (B, 1, L, L_keys) bool, True on the keys that it sees because they are of its own block, before
            or behind it; None where there are no blocks.
    """

    causal: torch.Tensor
    block: torch.Tensor | None = None

    @property
    def full(self) -> torch.Tensor:
        """(B, 1, L, L_keys) bool: all keys that a query sees."""
        return self.causal if self.block is None else self.causal | self.block

    def sliding(self, window: int, *, cuts_blocks: bool = False) -> torch.Tensor:
        """(B, 1, L, L_keys) bool: of the keys at or before a query the last ``window`` ones, and its block.

        With ``cuts_blocks`` the window also hides the beginning of a block.

        Distance is counted in tokens that the query sees, not in columns or rotary positions: captions beside
        each other lie far apart in a sequence, and an image's tokens share positions in M-RoPE.
        """
        newer = self.causal.flip(-1).cumsum(-1).flip(-1)  # visible keys from this one to the query
        near = self.causal & (newer <= window)
        if self.block is None:
            return near
        return near | (self.block & ~self.causal if cuts_blocks else self.block)

    def expand(self, batch: int) -> AttentionMask:
        """The mask of one sequence for ``batch`` of them."""
        block = None if self.block is None else self.block.expand(batch, -1, -1, -1)
        return AttentionMask(self.causal.expand(batch, -1, -1, -1), block)


def prompt_mask(prompts: PromptBatch) -> AttentionMask:
    """(B, 1, P, P): prompt tokens see real prompt tokens, padding itself."""
    return shared_prefix_mask(prompts, prompts.input_ids.new_zeros(len(prompts), 0))


def slot_mask(prompt_keys: torch.Tensor, visible: torch.Tensor) -> AttentionMask:
    """(B, 1, S, P + C): each of S decode slots sees its prompt and its own prefix.

    Args:
        prompt_keys: (B, P) bool, True on real prompt tokens.
        visible: (B, S, C) bool, the generated columns of a slot's own prefix, its newest token included.
    """
    prompt = prompt_keys[:, None].expand(-1, visible.shape[1], -1)
    return AttentionMask(torch.cat([prompt, visible], 2).unsqueeze(1))


def suffix_mask(prompts: PromptBatch, caption_mask: torch.Tensor) -> AttentionMask:
    """(B, 1, P + S, P + S) for one caption after each prompt.

    Args:
        prompts: B prompts.
        caption_mask: (B, S) bool, True on real caption tokens.
    """
    return shared_prefix_mask(prompts, caption_mask.long() - 1)


def shared_prefix_mask(prompts: PromptBatch, caption: torch.Tensor) -> AttentionMask:
    """(B, 1, P + S, P + S) for all captions of an image in one sequence after one shared prompt.

    A caption token sees the prompt and the earlier tokens of its own caption, never another caption.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    pad, length = torch.nn.functional.pad, caption.shape[1]
    # The prompt's "owner" is -1 like padding's, so that only caption tokens of one caption match.
    owner = pad(caption, (prompts.input_ids.shape[1], 0), value=-1)
    in_prompt = pad(prompts.attention_mask, (0, length)).unsqueeze(1)
    same = (owner.unsqueeze(2) == owner.unsqueeze(1)) & (owner >= 0).unsqueeze(2)
    earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    causal = _attend_to_self((in_prompt | same) & earlier)
    block_ids = pad(prompts.block_ids, (0, length), value=-1)
    block = (block_ids.unsqueeze(2) == block_ids.unsqueeze(1)) & (block_ids >= 0).unsqueeze(2) & in_prompt
    return AttentionMask(causal.unsqueeze(1), block.unsqueeze(1))


def continuation_mask(prompts: PromptBatch, caption: torch.Tensor) -> AttentionMask:
    """(B, 1, 1 + S, P + 1 + S): the last prompt token again, then captions, after a cached prompt.

    The last prompt token predicts the first token of every caption. Its query sees the cached prompt. Its
    recomputed key is masked for all queries, because the cache holds that key already.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    length = prompts.input_ids.shape[1]
    mask = shared_prefix_mask(prompts, torch.nn.functional.pad(caption, (1, 0), value=-1))
    causal = mask.causal[:, :, length:]
    causal[:, :, 0, length] = False  # undo its "attend to itself"
    block = torch.zeros_like(causal)
    own_block = (prompts.block_ids == prompts.block_ids[:, -1:]) & (prompts.block_ids >= 0)
    block[:, 0, 0, :length] = own_block & prompts.attention_mask
    return AttentionMask(causal, block)


def _attend_to_self(mask: torch.Tensor) -> torch.Tensor:
    """Let every position attend to itself: a softmax over no key at all (padding) would be NaN."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def for_decoder(
    mask: AttentionMask, text_config: Any, dtype: torch.dtype, *, cuts_blocks: bool = False
) -> Any:
    """The mask as a decoder takes it: a tensor, or one per type of layer where some have a sliding window.

    Args:
        mask: who sees whom.
        text_config: of the decoder.
        dtype: of its hidden states.
        cuts_blocks: as of :meth:`AttentionMask.sliding`.
    """
    kernel = text_config._attn_implementation
    window = getattr(text_config, "sliding_window", None)
    layer_types = getattr(text_config, "layer_types", None)
    if window is None or (layer_types is not None and "sliding_attention" not in layer_types):
        return for_attention(mask.full, kernel, dtype)
    sliding = for_attention(mask.sliding(window, cuts_blocks=cuts_blocks), kernel, dtype)
    if layer_types is None:
        return sliding
    return {"full_attention": for_attention(mask.full, kernel, dtype), "sliding_attention": sliding}


def for_attention(mask: torch.Tensor, attn_implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask as ``attn_implementation`` takes it: bool for sdpa, additive of ``dtype`` for eager."""
    if attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
