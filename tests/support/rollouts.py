"""Prompts of unequal length, a policy and the random numbers of a rollout."""

from __future__ import annotations

from typing import Any

import torch

from scst.models.policy import Policy, policy_for
from scst.rollout import distribution
from scst.types import PromptBatch, Sampling

PROMPTS = ["caption en", "caption en", "describe this image in detail", "caption en"]


def make_policy(model, processor) -> Policy:
    return policy_for(model, processor)


def uniforms(sampling: Sampling, count: int, seed: int = 0) -> torch.Tensor:
    ids = [f"image-{i}" for i in range(count)]
    return distribution.rollout_uniforms(
        ids, seed=seed, step=0, num_samples=sampling.num_samples, length=sampling.max_new_tokens
    )


def paligemma_prompts(
    ids: torch.Tensor, mask: torch.Tensor, pixels: Any = None, image_id: int = -1
) -> PromptBatch:
    """Prompts (B, P) written down by hand: a bidirectional block with positions from 1."""
    return PromptBatch(
        input_ids=ids,
        attention_mask=mask.bool(),
        image_mask=ids == image_id,
        position_ids=mask.long().cumsum(1).clamp(min=1).unsqueeze(1),
        block_ids=mask.long() - 1,
        vision=[{}] * len(ids) if pixels is None else [{"pixel_values": image[None]} for image in pixels],
    )
