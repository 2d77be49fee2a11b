"""Score completions under the policy, with gradients: the log probabilities the loss is made of.

Each distinct caption of an image is scored once, captions that cannot change the gradient are left out, and
the language-model head is applied to caption tokens only. :mod:`scst.scoring.layouts` has the sequences.
"""

from __future__ import annotations

import torch

from scst.models.policy import Policy
from scst.scoring import head
from scst.scoring.layouts import LAYOUTS, Captions, constant_prompt_states, flatten_captions
from scst.types import ImageFeatures, PromptBatch, Sampling, TokenScores, select_images


def score(
    policy: Policy,
    prompts: PromptBatch,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    sampling: Sampling,
    *,
    image_features: ImageFeatures | None = None,
    layout: str = "packed",
    prompt_cache: torch.Tensor | None = None,
    unique_index: torch.Tensor | None = None,
    head_chunk: int = head.CHUNK,
    with_entropy: bool = False,
) -> TokenScores:
    """Log probability of every completion token under the sampling distribution, with gradients.

    Args:
        policy: the model; gradients flow to its trainable weights unless the caller disables them.
        prompts: B prompts.
        completion_ids: (B, K, T) token ids.
        completion_mask: (B, K, T) bool, True on the first tokens of every row.
        sampling: the distribution that the completions were drawn from.
        image_features: of B images, from the rollout; computed here when None.
        layout: a name in :data:`scst.scoring.layouts.LAYOUTS`.
        prompt_cache: (B, layers, 2, heads, P, D) keys and values of the prompts under this very policy
            (:func:`scst.rollout.cache.prompt_cache`). Captions then read them as constants, whatever the
            layout: scores are the same, their gradient lacks what flows through the prompt. None: computed.
        unique_index: (B, K) index of the caption of the same image that is scored in place of this one; equal
            to k where caption k is scored itself, -1 where it is left out (:func:`distinct_captions`,
            :func:`without_zero_advantages`). None scores every caption itself.
        head_chunk: tokens whose logits exist at one time (:func:`scst.scoring.head.token_scores`).
        with_entropy: compute the entropy of every token's distribution too, with gradients. It costs several
            more passes over the vocabulary.

    Returns:
        Logprobs and, where asked for, entropies (B, K, T); 0 where ``completion_mask`` is False and for
        captions left out.

    Raises:
        ValueError: on a layout that does not exist or shapes that do not fit.
    """
    _check(prompts, completion_ids, completion_mask, layout)
    own = torch.arange(completion_ids.shape[1], device=completion_ids.device).expand(completion_ids.shape[:2])
    unique_index = own if unique_index is None else unique_index
    is_scored = (unique_index == own) & completion_mask[..., 0]
    if not is_scored.any():
        nothing = torch.zeros(completion_ids.shape, device=policy.device)
        return TokenScores(nothing, nothing if with_entropy else None)
    captions, images = flatten_captions(completion_ids, completion_mask, is_scored)
    prompts = prompts.select(images)
    if prompt_cache is not None:
        states = constant_prompt_states(policy, prompts, prompt_cache[images], captions)
    else:
        if image_features is None:
            features = policy.image_features(prompts)
        else:
            features = select_images(image_features, images)
        states = LAYOUTS[layout](policy, prompts, features, captions)
    ids, positions = captions.ids[captions.mask], captions.positions[captions.mask]
    logprobs, entropies = head.token_scores(
        policy, states, ids, positions, sampling, chunk=head_chunk, with_entropy=with_entropy
    )
    counts = completion_mask & (unique_index >= 0).unsqueeze(-1)
    row = _rows_of(is_scored, unique_index)
    return TokenScores(
        _spread(logprobs, captions, row, counts),
        None if entropies is None else _spread(entropies, captions, row, counts),
    )


def _rows_of(is_scored: torch.Tensor, unique_index: torch.Tensor) -> torch.Tensor:
    """(B, K) row of every caption's scores among the flattened captions.

    Captions were flattened in the order of ``is_scored``, so caption (b, k) is row "number of scored captions
    before it". A caption that takes another one's scores looks up that one's row.
    """
    return (is_scored.flatten().cumsum(0) - 1).view_as(unique_index).gather(1, unique_index.clamp(min=0))


def distinct_captions(completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """(B, K) index of the first caption of the same image with the same tokens.

    Equal captions have equal scores: scored once, their gradients add up in the one that was scored.

    Args:
        completion_ids: (B, K, T) token ids.
        completion_mask: (B, K, T) bool.
    """
    ids = completion_ids.masked_fill(~completion_mask, -1)
    equal = (ids.unsqueeze(2) == ids.unsqueeze(1)).all(-1)
    return equal.long().argmax(-1)  # argmax: the first that is equal


def without_zero_advantages(unique_index: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """``unique_index`` with -1 for captions whose policy gradient is exactly zero.

    The gradient of a caption is its advantage times a vector; equal captions have the same vector, so that
    their advantages add up, and nothing is left where the sum is zero.

    Args:
        unique_index: (B, K) from :func:`distinct_captions`.
        advantages: (B, K).
    """
    sums = torch.zeros_like(advantages).scatter_add(1, unique_index, advantages)
    return unique_index.masked_fill(sums.gather(1, unique_index) == 0, -1)


def _spread(
    tokens: torch.Tensor, captions: Captions, row: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Undo the flattening of captions.

    Args:
        tokens: (N,) values of the scored tokens.
        captions: the R scored captions.
        row: (B, K) which of the R captions each caption takes its values from.
        counts: (B, K, T) bool, where values are wanted.

    Returns:
        (B, K, T) values, 0 where not wanted.
    """
    rows = tokens.new_zeros(captions.ids.shape).masked_scatter(captions.mask, tokens)
    rows = torch.nn.functional.pad(rows, (0, counts.shape[-1] - rows.shape[1]))
    return rows[row].masked_fill(~counts, 0.0)


def _check(
    prompts: PromptBatch, completion_ids: torch.Tensor, completion_mask: torch.Tensor, layout: str
) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown scoring layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if completion_ids.shape != completion_mask.shape or completion_ids.shape[0] != len(prompts):
        raise ValueError(
            f"completion_ids {tuple(completion_ids.shape)} and completion_mask "
            f"{tuple(completion_mask.shape)} must both be (B, K, T) with B = {len(prompts)}"
        )
