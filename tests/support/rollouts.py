"""Prompts of unequal length, a policy and the random numbers of a rollout."""

from __future__ import annotations

import torch

from scst.models.policy import Policy, policy_for
from scst.rollout import distribution
from scst.types import Sampling

PROMPTS = ["caption en", "caption en", "describe this image in detail", "caption en"]


def make_policy(model, processor) -> Policy:
    return policy_for(model, processor)


def uniforms(sampling: Sampling, count: int, seed: int = 0) -> torch.Tensor:
    ids = [f"image-{i}" for i in range(count)]
    return distribution.rollout_uniforms(
        ids, seed=seed, step=0, num_samples=sampling.num_samples, length=sampling.max_new_tokens
    )
