"""Sample captions: one vision pass and one prefill per image, then greedy and sampled rows decoded together.

Row 0 of every image is greedy, rows 1..K are sampled. `generate` called twice would encode every image twice,
prefill and store the prompt K + 1 times, and compute every row until the longest has ended. Here the prompt's
keys and values exist once per image (:mod:`scst.rollout.cache`), and a decode step computes one slot per
distinct unfinished prefix (:mod:`scst.rollout.decode_state`); images without unfinished rows leave the batch.
The draws are a function of (uniform number, distribution) alone, so none of this changes a caption.
"""

from __future__ import annotations

from typing import Any

import torch

from scst.models import masks
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.rollout.cache import RolloutCache, prefill
from scst.rollout.decode_state import DecodeState, Slots
from scst.rollout.static import steps_for
from scst.types import ImageFeatures, PromptBatch, Rollout, Sampling


@torch.no_grad()
def rollout(
    policy: Policy,
    processor: Any,
    prompts: PromptBatch,
    sampling: Sampling,
    uniforms: torch.Tensor,
    image_features: ImageFeatures | None = None,
    keep_prompt_cache: bool = False,
) -> Rollout:
    """Greedy caption and K sampled captions of every image. Call with the model in eval mode.

    Args:
        policy: the model.
        processor: decodes token ids to text; a prompt encoder will do.
        prompts: B prompts.
        sampling: K and the sampling distribution.
        uniforms: (B, K, T) numbers in [0, 1) that decide every draw
            (:func:`scst.rollout.distribution.rollout_uniforms`).
        image_features: of the images (:mod:`scst.rollout.feature_cache`); None: computed here.
        keep_prompt_cache: return the prompts' keys and values in the rollout, to score with them.

    Returns:
        The rollout; its tensors are on the policy's device.

    Raises:
        ValueError: when ``uniforms`` does not have shape (B, K, max_new_tokens).
    """
    expected = (len(prompts), sampling.num_samples, sampling.max_new_tokens)
    if tuple(uniforms.shape) != expected:
        raise ValueError(f"uniforms must have shape (B, K, T) = {expected}, got {tuple(uniforms.shape)}")
    prompts = prompts.to(policy.device)
    features = policy.image_features(prompts) if image_features is None else image_features
    ids, mask, logprobs, prompt_cache = decode(
        policy, prompts, features, sampling, uniforms.cpu(), keep_prompt_cache
    )
    is_text = mask & (ids != policy.eos_token_id)
    texts = PromptEncoder.of(processor).decode_captions(ids.flatten(0, 1), is_text.flatten(0, 1))
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
        # Features of a trained vision tower are computed again in scoring, where gradients flow through it.
        image_features=None if policy.vision_is_trainable else features,
        prompt_cache=prompt_cache,
    )


def decode(
    policy: Policy,
    prompts: PromptBatch,
    features: ImageFeatures,
    sampling: Sampling,
    uniforms: torch.Tensor,
    keep_prompt_cache: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids, mask and logprobs (B, K + 1, T') of all rows, and the prompt cache; stops when all have ended.

    K is that of ``uniforms`` (B, K, T): 0 decodes the greedy rows alone.
    """
    num_rows = uniforms.shape[1] + 1
    steps = steps_for(policy, prompts, num_rows, sampling.max_new_tokens) or SharedSteps(
        policy, prompts, num_rows * (sampling.max_new_tokens - 1)
    )
    # In lockstep every process must run the same number of layers per step, so no process may drop images.
    fixed = policy.lockstep or not isinstance(steps, SharedSteps)
    state = DecodeState(policy, sampling, uniforms, fixed=fixed)
    state.append_tokens(steps.prefill(features))
    prompt_cache = steps.cache.prompts() if keep_prompt_cache else None
    while state.step < sampling.max_new_tokens and policy.any_active(bool(state.active.any())):
        state.append_tokens(steps.step(state.next_slots(), state.step))
    return *state.results(), prompt_cache


class SharedSteps:
    """Decode steps that compute unfinished prefixes and nothing else: shapes change from step to step.

    Args:
        policy: the model.
        prompts: B prompts.
        capacity: cache columns for generated tokens, per image.
    """

    def __init__(self, policy: Policy, prompts: PromptBatch, capacity: int):
        self.policy, self.prompts = policy, prompts
        self.cache = RolloutCache(policy.text_config.num_hidden_layers, capacity)
        self.last_positions = prompts.last_positions

    def prefill(self, image_features: ImageFeatures) -> torch.Tensor:
        """Logits (B, 1, V) of the first token."""
        return prefill(self.policy, self.prompts, image_features, self.cache)

    def step(self, slots: Slots, step: int) -> torch.Tensor:
        """Logits (b, S, V) of the next token of every slot, ``step`` tokens after the prompt."""
        # Images leave before the step: the batch of the cache must be that of the queries.
        self.cache.keep_images(slots.kept.to(self.policy.device))
        images, tokens = slots.images.to(self.policy.device), slots.tokens.to(self.policy.device)
        visible = slots.visible.to(self.policy.device)
        mask = masks.slot_mask(self.prompts.attention_mask[images], visible)
        inputs = self.policy.behind(self.last_positions[images], mask, tokens, step)
        return self.policy.forward(inputs, keep=tokens.shape[1], cache=self.cache)
