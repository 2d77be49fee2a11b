"""Greedy captions without samples, decoded as in rollouts: for metrics on held-out images."""

from __future__ import annotations

from typing import Any

import torch

from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.rollout.decode import decode
from scst.types import PromptBatch, Sampling


@torch.no_grad()
def greedy_captions(
    policy: Policy, processor: Any, prompts: PromptBatch, *, max_new_tokens: int, min_new_tokens: int
) -> list[tuple[str, bool, int]]:
    """The greedy caption of every image, equal to a rollout's. Call with the model in eval mode.

    Args:
        policy: the model.
        processor: decodes token ids to text; a prompt encoder will do.
        prompts: B prompts.
        max_new_tokens: length limit, end-of-sequence token included.
        min_new_tokens: the end-of-sequence token is impossible before this many tokens.

    Returns:
        B times: text, whether it ended by itself, number of tokens.
    """
    prompts = prompts.to(policy.device)
    sampling = Sampling(1, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)
    no_draws = torch.empty(len(prompts), 0, max_new_tokens)  # K = 0: greedy rows alone
    features = policy.image_features(prompts)
    ids, mask, _, _ = decode(policy, prompts, features, sampling, no_draws)
    ids, mask = ids[:, 0], mask[:, 0]
    is_eos = ids.eq(policy.eos_token_id) & mask
    texts = PromptEncoder.of(processor).decode_captions(ids, mask & ~is_eos)
    return list(zip(texts, is_eos.any(-1).tolist(), mask.sum(-1).tolist(), strict=True))
