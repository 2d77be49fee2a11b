"""Attention masks of a prefix language model, built here so that they are the same on every library version.

The prompt is bidirectional, captions are causal, and nothing in the prompt sees a caption. Masks are bool,
True = attend; :func:`for_attention` converts them for the attention kernel.
"""

from __future__ import annotations

import torch

from scst.types import PromptBatch


def prompt_mask(prompts: PromptBatch) -> torch.Tensor:
    """(B, 1, P, P) bool: every prompt token attends to every real prompt token, padding to itself too."""
    length = prompts.attention_mask.shape[1]
    keys = prompts.attention_mask[:, None, :].expand(-1, length, -1)
    return _attend_to_self(keys).unsqueeze(1)


def slot_mask(prompt_keys: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(B, 1, S, P + C) bool: each of S decode slots sees its prompt and its own prefix.

    Args:
        prompt_keys: (B, P) bool, True on real prompt tokens.
        visible: (B, S, C) bool, the generated columns of a slot's own prefix, its newest token included.
    """
    prompt = prompt_keys[:, None].expand(-1, visible.shape[1], -1)
    return torch.cat([prompt, visible], 2).unsqueeze(1)


def suffix_mask(prompts: PromptBatch, caption_mask: torch.Tensor) -> torch.Tensor:
    """(B, 1, P + S, P + S) bool for one caption after each prompt.

    Args:
        prompts: B prompts.
        caption_mask: (B, S) bool, True on real caption tokens.
    """
    return shared_prefix_mask(prompts, caption_mask.long() - 1)


def shared_prefix_mask(prompts: PromptBatch, caption: torch.Tensor) -> torch.Tensor:
    """(B, 1, P + S, P + S) bool for all captions of an image in one sequence after one shared prompt.

    A caption token sees the prompt and the earlier tokens of its own caption, never another caption.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    # The prompt's "owner" is -1 like padding's, so that only caption tokens of one caption match.
    owner = torch.nn.functional.pad(caption, (prompts.input_ids.shape[1], 0), value=-1)
    same = (owner.unsqueeze(2) == owner.unsqueeze(1)) & (owner >= 0).unsqueeze(2)
    earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    in_prompt = torch.nn.functional.pad(prompts.attention_mask, (0, caption.shape[1]))
    return _attend_to_self(in_prompt.unsqueeze(1) | same & earlier).unsqueeze(1)


def continuation_mask(prompts: PromptBatch, caption: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1 + S, P + 1 + S) bool: the last prompt token again, then captions, after a cached prompt.

    The last prompt token predicts the first token of every caption. Its query sees the cached prompt. Its
    recomputed key is masked for all queries, because the cache holds that key already.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    length = prompts.input_ids.shape[1]
    mask = shared_prefix_mask(prompts, torch.nn.functional.pad(caption, (1, 0), value=-1))[:, :, length:]
    mask[:, :, 0, length] = False  # undo its "attend to itself"
    return mask


def _attend_to_self(mask: torch.Tensor) -> torch.Tensor:
    """Let every position attend to itself: a softmax over no key at all (padding) would be NaN."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def for_attention(mask: torch.Tensor, attn_implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask as ``attn_implementation`` takes it: bool for sdpa, additive of ``dtype`` for eager."""
    if attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
