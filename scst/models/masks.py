"""Attention masks of a prefix language model, built here so that they are the same on every library version.

The prompt is bidirectional, captions are causal, and nothing in the prompt sees a caption. Masks are
returned in the form the attention kernel takes: bool for sdpa (True = attend), additive float for eager.
"""

from __future__ import annotations

import torch

from scst.types import PromptBatch


def prompt_mask(prompts: PromptBatch) -> torch.Tensor:
    """(B, 1, P, P) bool: every prompt token attends to every real prompt token (and padding to itself)."""
    length = prompts.attention_mask.shape[1]
    keys = prompts.attention_mask[:, None, :].expand(-1, length, -1)
    return _attend_to_self(keys).unsqueeze(1)


def slot_mask(prompt_keys: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(B, 1, S, P + C) bool: each of S decoded slots sees its prompt and its own past, never another row's.

    Args:
        prompt_keys: (B, P) bool, True on real prompt tokens.
        visible: (B, S, C) bool, the generated columns that are a slot's own past, its newest token included.
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
    """(B, 1, P + S, P + S) bool for the captions of an image beside each other after one shared prompt.

    A caption token sees the prompt and the earlier tokens of its own caption, never another caption.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    owner = torch.nn.functional.pad(caption, (prompts.input_ids.shape[1], 0), value=-1)
    same = (owner.unsqueeze(2) == owner.unsqueeze(1)) & (owner >= 0).unsqueeze(2)
    earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    in_prompt = torch.nn.functional.pad(prompts.attention_mask, (0, caption.shape[1]))
    return _attend_to_self(in_prompt.unsqueeze(1) | same & earlier).unsqueeze(1)


def continuation_mask(prompts: PromptBatch, caption: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1 + S, P + 1 + S) bool for captions behind cached prompts, their last token computed again.

    That token predicts the first one of every caption. It sees the cached prompt, of which it is a part, and
    nobody sees it again.

    Args:
        prompts: B prompts.
        caption: (B, S) which caption a token belongs to, -1 on padding.
    """
    length = prompts.input_ids.shape[1]
    mask = shared_prefix_mask(prompts, torch.nn.functional.pad(caption, (1, 0), value=-1))[:, :, length:]
    mask[:, :, 0, length] = False
    return mask


def _attend_to_self(mask: torch.Tensor) -> torch.Tensor:
    """Let padding attend to itself: a row without any key would be NaN."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def for_attention(mask: torch.Tensor, attn_implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask in the form that ``attn_implementation`` takes."""
    if attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
