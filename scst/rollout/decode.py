"""Sample captions: one vision pass and one prefill per image, then one decode batch of B * (K + 1) rows.

Row 0 of every image is greedy, rows 1..K are sampled. `generate` called twice would encode every image twice
and prefill K + 1 times; here the prompt's keys and values are computed once and shared by its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from scst import ops
from scst.models import masks
from scst.models.policy import Policy
from scst.models.prompts import decode_captions
from scst.types import PromptBatch, Rollout, Sampling


@torch.no_grad()
def rollout(
    policy: Policy, processor: Any, prompts: PromptBatch, sampling: Sampling, uniforms: torch.Tensor
) -> Rollout:
    """Greedy caption and K sampled captions of every image. Call with the model in eval mode.

    Args:
        policy: the model.
        processor: decodes token ids to text.
        prompts: B prompts.
        sampling: K and the sampling distribution.
        uniforms: (B, K, T) numbers in [0, 1) that decide every draw (:func:`scst.ops.rollout_uniforms`).

    Returns:
        The rollout; its tensors are on the policy's device.

    Raises:
        ValueError: when ``uniforms`` does not have shape (B, K, max_new_tokens).
    """
    expected = (len(prompts), sampling.num_samples, sampling.max_new_tokens)
    if tuple(uniforms.shape) != expected:
        raise ValueError(f"uniforms must have shape (B, K, T) = {expected}, got {tuple(uniforms.shape)}")
    prompts = prompts.to(policy.device)
    features = policy.image_features(prompts.pixel_values)
    rows = _decode_rows(policy, prompts, features, sampling, uniforms.to(policy.device))
    ids, mask, logprobs = (
        tensor.unflatten(0, (len(prompts), -1)) for tensor in (rows.ids, rows.mask, rows.logprobs)
    )
    texts = decode_captions(processor, rows.ids, rows.mask & (rows.ids != policy.eos_token_id))
    per_image = sampling.num_samples + 1
    groups = [texts[start : start + per_image] for start in range(0, len(texts), per_image)]
    ended = (ids == policy.eos_token_id).logical_and(mask).any(-1)
    return Rollout(
        prompts=prompts,
        completion_ids=ids[:, 1:],
        completion_mask=mask[:, 1:],
        sampled_logprobs=logprobs[:, 1:],
        greedy_ids=ids[:, 0],
        greedy_mask=mask[:, 0],
        captions=[group[1:] for group in groups],
        greedy_captions=[group[0] for group in groups],
        ended_by_eos=ended[:, 1:],
        greedy_ended_by_eos=ended[:, 0],
        image_features=None if policy.vision_is_trainable else features,
    )


@dataclass
class _Rows:
    """Completions of all decode rows: ids, mask and logprobs (rows, T)."""

    ids: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor


def _decode_rows(
    policy: Policy, prompts: PromptBatch, features: torch.Tensor, sampling: Sampling, uniforms: torch.Tensor
) -> _Rows:
    """The decode loop over B * (K + 1) rows; stops when every row has ended."""
    per_image = sampling.num_samples + 1
    policy.check_length(prompts.input_ids.shape[1] + sampling.max_new_tokens)
    logits, cache = _prefill(policy, prompts, features, per_image)
    num_rows = logits.shape[0]
    greedy = torch.arange(num_rows, device=logits.device) % per_image == 0
    draws = torch.cat([torch.zeros_like(uniforms[:, :1]), uniforms], 1).flatten(0, 1)
    last_prompt_position = prompts.position_ids[:, -1:].repeat_interleave(per_image, 0)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=logits.device)
    ids, mask, logprobs = [], [], []
    for step in range(sampling.max_new_tokens):
        tokens, token_logprobs = _next_tokens(policy, logits, step, sampling, draws[:, step], greedy)
        ids.append(tokens.masked_fill(ended, policy.pad_token_id))
        mask.append(~ended)
        logprobs.append(token_logprobs.masked_fill(ended, 0.0))
        ended = ended | (tokens == policy.eos_token_id)
        if step + 1 == sampling.max_new_tokens or ended.all():
            break
        logits = policy.forward(
            policy.caption_embeddings(ids[-1].unsqueeze(1)),
            masks.decode_mask(prompts, per_image, step + 1),
            last_prompt_position + step + 1,
            keep=1,
            cache=cache,
        )[:, -1]
    return _Rows(torch.stack(ids, 1), torch.stack(mask, 1), torch.stack(logprobs, 1))


def _prefill(
    policy: Policy, prompts: PromptBatch, features: torch.Tensor, rows_per_prompt: int
) -> tuple[torch.Tensor, DynamicCache]:
    """First-token logits (B * rows, V) and the prompt's cache, computed once and repeated for the rows."""
    cache = DynamicCache(config=policy.text_config)
    logits = policy.forward(
        policy.prompt_embeddings(prompts, features),
        masks.prompt_mask(prompts),
        prompts.position_ids,
        keep=1,
        cache=cache,
    )[:, -1]
    cache.batch_repeat_interleave(rows_per_prompt)
    return logits.repeat_interleave(rows_per_prompt, 0), cache


def _next_tokens(
    policy: Policy,
    logits: torch.Tensor,
    step: int,
    sampling: Sampling,
    draws: torch.Tensor,
    greedy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows,) and their log probabilities under the sampling distribution."""
    positions = torch.full((logits.shape[0],), step, device=logits.device)
    shaped = ops.policy_logits(
        logits,
        positions=positions,
        sampling=sampling,
        forbidden=policy.forbidden,
        eos_token_id=policy.eos_token_id,
    )
    tokens = torch.where(greedy, shaped.argmax(-1), ops.draw(shaped, draws))
    return tokens, ops.token_logprobs(shaped, tokens)
