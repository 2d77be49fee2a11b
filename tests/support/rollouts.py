"""Prompts of unequal length, a policy and the random numbers of a rollout."""

from __future__ import annotations

import torch

from scst.models.policy import Policy
from scst.models.prompts import forbidden_token_mask
from scst.rollout import distribution
from scst.types import Sampling

PROMPTS = ["caption en", "caption en", "describe this image in detail", "caption en"]


def make_policy(model, processor) -> Policy:
    forbidden = forbidden_token_mask(processor, model.config.get_text_config().vocab_size)
    return Policy(model, forbidden, processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id)


def uniforms(sampling: Sampling, count: int, seed: int = 0) -> torch.Tensor:
    ids = [f"image-{i}" for i in range(count)]
    return distribution.rollout_uniforms(
        ids, seed=seed, step=0, num_samples=sampling.num_samples, length=sampling.max_new_tokens
    )
