"""Score completions under the policy, with gradients: the log probabilities the loss is made of.

Two layouts behind one signature, proven equal by test. ``plain`` repeats the prompt for every caption, as
everybody does; ``packed`` runs the prompt once per image with its K captions beside it (a shared prefix with
a block mask), which saves most of the arithmetic. Both take the language-model head on caption positions
only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from scst import ops
from scst.models import masks
from scst.models.policy import Policy
from scst.types import PromptBatch, Sampling, TokenScores


def score(
    policy: Policy,
    prompts: PromptBatch,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    sampling: Sampling,
    *,
    image_features: torch.Tensor | None = None,
    layout: str = "packed",
) -> TokenScores:
    """Log probability and entropy of every completion token under the sampling distribution.

    Args:
        policy: the model; gradients flow to its trainable weights unless the caller disables them.
        prompts: B prompts.
        completion_ids: (B, K, T) token ids.
        completion_mask: (B, K, T) bool.
        sampling: the distribution that the completions were drawn from.
        image_features: (B, N, D) from the rollout; computed here when None.
        layout: a name in :data:`LAYOUTS`.

    Returns:
        Logprobs and entropies (B, K, T), 0 where ``completion_mask`` is False.

    Raises:
        ValueError: on a layout that does not exist or shapes that do not fit.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown scoring layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if completion_ids.shape != completion_mask.shape or completion_ids.shape[0] != len(prompts):
        raise ValueError(
            f"completion_ids {tuple(completion_ids.shape)} and completion_mask "
            f"{tuple(completion_mask.shape)} must both be (B, K, T) with B = {len(prompts)}"
        )
    if image_features is None:
        image_features = policy.image_features(prompts.pixel_values)
    logits = LAYOUTS[layout](policy, prompts, image_features, completion_ids, completion_mask)
    positions = torch.arange(completion_ids.shape[-1], device=logits.device).expand_as(completion_ids)
    shaped = ops.policy_logits(
        logits,
        positions=positions,
        sampling=sampling,
        forbidden=policy.forbidden,
        eos_token_id=policy.eos_token_id,
        keep_ids=completion_ids,
    )
    # padding is scored as the most probable token: finite, so that masking it leaves no NaN in the gradient
    scored_ids = torch.where(completion_mask, completion_ids, shaped.argmax(-1))
    logprobs = ops.token_logprobs(shaped, scored_ids).masked_fill(~completion_mask, 0.0)
    return TokenScores(logprobs, ops.token_entropy(shaped).masked_fill(~completion_mask, 0.0))


def _plain_logits(
    policy: Policy,
    prompts: PromptBatch,
    image_features: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """(B, K, T, V) logits, the prompt repeated for each of the K captions."""
    num_images, num_captions, length = completion_ids.shape
    repeated = prompts.select(torch.arange(num_images, device=policy.device).repeat_interleave(num_captions))
    inputs = completion_ids.flatten(0, 1)[:, :-1]
    inputs_mask = completion_mask.flatten(0, 1)[:, :-1]
    policy.check_length(prompts.input_ids.shape[1] + length)
    prompt_embeddings = policy.prompt_embeddings(repeated, image_features.repeat_interleave(num_captions, 0))
    last = repeated.position_ids[:, -1:]
    logits = policy.forward(
        torch.cat([prompt_embeddings, policy.caption_embeddings(inputs)], 1),
        masks.suffix_mask(repeated, inputs_mask),
        torch.cat([repeated.position_ids, last + torch.arange(1, length, device=last.device)], 1),
        keep=length,
        through_wrappers=True,
    )
    return logits.unflatten(0, (num_images, num_captions))


def _packed_logits(
    policy: Policy,
    prompts: PromptBatch,
    image_features: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """(B, K, T, V) logits from one sequence per image: the prompt, then K captions blind to each other."""
    num_captions, length = completion_ids.shape[1:]
    prompt_length = prompts.input_ids.shape[1]
    inputs, inputs_mask = completion_ids[:, :, :-1], completion_mask[:, :, :-1]
    policy.check_length(prompt_length + length)
    last = prompts.position_ids[:, -1:]
    caption_positions = (last + torch.arange(1, length, device=last.device)).repeat(1, num_captions)
    total = prompt_length + num_captions * (length - 1)
    logits = policy.forward(
        torch.cat(
            [policy.prompt_embeddings(prompts, image_features), policy.caption_embeddings(inputs.flatten(1))],
            1,
        ),
        masks.packed_mask(prompts, inputs_mask),
        torch.cat([prompts.position_ids, caption_positions], 1),
        keep=torch.arange(prompt_length - 1, total, device=last.device),
        through_wrappers=True,
    )
    first = logits[:, :1].unsqueeze(1).expand(-1, num_captions, -1, -1)
    return torch.cat([first, logits[:, 1:].unflatten(1, (num_captions, length - 1))], 2)


LAYOUTS: dict[str, Callable[..., torch.Tensor]] = {"packed": _packed_logits, "plain": _plain_logits}
