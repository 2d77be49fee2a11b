"""Score completions under the policy, with gradients: the log probabilities the loss is made of.

Two layouts behind one signature, proven equal by test. ``plain`` repeats the prompt for every caption, as
everybody does; ``packed`` runs the prompt once per image with its captions beside it (a shared prefix with
a block mask), which saves most of the arithmetic. Both score each distinct caption of an image once, leave
out captions that cannot change the gradient, and take the language-model head on caption tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scst.models import masks
from scst.models.policy import Policy
from scst.rollout.cache import ConstantPrompt
from scst.scoring import head
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
    prompt_cache: torch.Tensor | None = None,
    scored_as: torch.Tensor | None = None,
    head_chunk: int = head.CHUNK,
    entropy_gradient: bool = True,
) -> TokenScores:
    """Log probability and entropy of every completion token under the sampling distribution.

    Args:
        policy: the model; gradients flow to its trainable weights unless the caller disables them.
        prompts: B prompts.
        completion_ids: (B, K, T) token ids.
        completion_mask: (B, K, T) bool, True on the first tokens of every row.
        sampling: the distribution that the completions were drawn from.
        image_features: (B, N, D) from the rollout; computed here when None.
        layout: a name in :data:`LAYOUTS`.
        prompt_cache: (B, layers, 2, heads, P, D) keys and values of the prompts under this very policy
            (:func:`scst.rollout.cache.prompt_cache`). Captions read them as constants, whatever the layout:
            scores are the same, but their gradient lacks what flows through the prompt. None: the whole one.
        scored_as: (B, K) the caption of the same image whose scores a caption takes, with their gradient; -1
            leaves it out (:func:`distinct_captions`, :func:`without_zero_advantages`). None scores them all.
        head_chunk: tokens whose logits exist at one time (:func:`scst.scoring.head.token_scores`).
        entropy_gradient: False when the entropy is only looked at.

    Returns:
        Logprobs and entropies (B, K, T), 0 where ``completion_mask`` is False and for captions left out.

    Raises:
        ValueError: on a layout that does not exist or shapes that do not fit.
    """
    _check(prompts, completion_ids, completion_mask, layout)
    own = torch.arange(completion_ids.shape[1], device=completion_ids.device).expand(completion_ids.shape[:2])
    scored_as = own if scored_as is None else scored_as
    is_scored = (scored_as == own) & completion_mask[..., 0]
    if not is_scored.any():
        nothing = torch.zeros(completion_ids.shape, device=policy.device)
        return TokenScores(nothing, nothing)
    captions, images = _captions(completion_ids, completion_mask, is_scored)
    prompts = prompts.select(images)
    if prompt_cache is not None:
        states = _constant_prompt_states(policy, prompts, prompt_cache[images], captions)
    else:
        known = image_features is not None
        features = image_features[images] if known else policy.image_features(prompts.pixel_values)
        states = LAYOUTS[layout](policy, prompts, features, captions)
    tokens = captions.ids[captions.mask], captions.positions[captions.mask]
    settings = {"chunk": head_chunk, "entropy_gradient": entropy_gradient}
    values = head.token_scores(policy, states, *tokens, sampling, **settings)
    counts = completion_mask & (scored_as >= 0).unsqueeze(-1)
    row = (is_scored.flatten().cumsum(0) - 1).view_as(own).gather(1, scored_as.clamp(min=0))
    return TokenScores(*(_spread(scores, captions, row, counts) for scores in values))


def distinct_captions(completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """(B, K) the first caption of the same image with the same tokens; its own number where it is the first.

    The scores of equal captions are equal. Computed once, their gradients add up.

    Args:
        completion_ids: (B, K, T) token ids.
        completion_mask: (B, K, T) bool.
    """
    ids = completion_ids.masked_fill(~completion_mask, -1)
    equal = (ids.unsqueeze(2) == ids.unsqueeze(1)).all(-1)
    return equal.long().argmax(-1)


def without_zero_advantages(scored_as: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """``scored_as`` with -1 for captions whose policy gradient is exactly zero.

    The gradient of a caption is its advantage times a vector; equal captions have the same vector, so that
    their advantages add up, and nothing is left where the sum is zero.

    Args:
        scored_as: (B, K) from :func:`distinct_captions`.
        advantages: (B, K).
    """
    sums = torch.zeros_like(advantages).scatter_add(1, scored_as, advantages)
    return scored_as.masked_fill(sums.gather(1, scored_as) == 0, -1)


@dataclass(frozen=True)
class _Captions:
    """R captions to score, in the order of their images.

    Attributes:
        image: (R,) number of the image among those that are left.
        ids: (R, T) token ids, without trailing columns of padding.
        mask: (R, T) bool.
        positions: (R, T) place in the caption, 0 for the first token.
    """

    image: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def _captions(
    ids: torch.Tensor, mask: torch.Tensor, is_scored: torch.Tensor
) -> tuple[_Captions, torch.Tensor]:
    """The captions of ``is_scored`` (B, K), and the numbers of the images that have any."""
    images, image = is_scored.nonzero()[:, 0].unique(return_inverse=True)
    length = mask[is_scored].sum(-1).max()
    ids, mask = ids[is_scored][:, :length], mask[is_scored][:, :length]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return _Captions(image, ids, mask, positions), images


def _plain_states(
    policy: Policy, prompts: PromptBatch, image_features: torch.Tensor, captions: _Captions
) -> torch.Tensor:
    """(N, D) hidden states that predict the N tokens, the prompt repeated for each of the R captions."""
    repeated = prompts.select(captions.image)
    prompt_length, length = prompts.input_ids.shape[1], captions.ids.shape[1]
    policy.check_length(prompt_length + length)
    prompt_embeddings = policy.prompt_embeddings(repeated, image_features[captions.image])
    states = policy.hidden_states(
        torch.cat([prompt_embeddings, policy.caption_embeddings(captions.ids[:, :-1])], 1),
        masks.suffix_mask(repeated, captions.mask[:, :-1]),
        torch.cat([repeated.position_ids, repeated.position_ids[:, -1:] + captions.positions[:, 1:]], 1),
    )
    return states[:, prompt_length - 1 :][captions.mask]


def _packed_states(
    policy: Policy, prompts: PromptBatch, image_features: torch.Tensor, captions: _Captions
) -> torch.Tensor:
    """(N, D) hidden states that predict the N tokens, from one sequence per image.

    The prompt, then the tokens of its captions without any padding between them; a caption sees the prompt
    and itself. An image with few captions waits for the one with most, and costs no more than padding.
    """
    prompt_length = prompts.input_ids.shape[1]
    policy.check_length(prompt_length + captions.ids.shape[1])
    packed = _packed(captions, len(prompts), policy.pad_token_id)
    embeddings = [policy.prompt_embeddings(prompts, image_features), policy.caption_embeddings(packed.ids)]
    states = policy.hidden_states(
        torch.cat(embeddings, 1),
        masks.shared_prefix_mask(prompts, packed.caption),
        torch.cat([prompts.position_ids, prompts.position_ids[:, -1:] + packed.positions], 1),
    )
    return packed.predicting(states[:, prompt_length - 1 :], captions)


def _constant_prompt_states(
    policy: Policy, prompts: PromptBatch, prompt_cache: torch.Tensor, captions: _Captions
) -> torch.Tensor:
    """(N, D) the same states, without the gradient that flows through keys and values of the prompt.

    The last prompt token is computed once more, with gradients: it predicts the first token of every caption.
    """
    policy.check_length(prompts.input_ids.shape[1] + captions.ids.shape[1])
    packed = _packed(captions, len(prompts), policy.pad_token_id)
    last = prompts.position_ids[:, -1:]
    states = policy.hidden_states(
        policy.caption_embeddings(torch.cat([prompts.input_ids[:, -1:], packed.ids], 1)),
        masks.continuation_mask(prompts, packed.caption),
        torch.cat([last, last + packed.positions], 1),
        cache=ConstantPrompt(prompt_cache),
    )
    return packed.predicting(states, captions)


def _spread(
    tokens: torch.Tensor, captions: _Captions, row: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """(B, K, T) values of the N tokens: of each caption those of the scored one in its ``row`` (B, K)."""
    rows = tokens.new_zeros(captions.ids.shape).masked_scatter(captions.mask, tokens)
    rows = torch.nn.functional.pad(rows, (0, counts.shape[-1] - rows.shape[1]))
    return rows[row].masked_fill(~counts, 0.0)


@dataclass(frozen=True)
class _Packed:
    """The inputs of all captions, beside each other in one sequence per image.

    Attributes:
        ids: (b, S) token ids; the last token of a caption predicts nothing and is left out.
        positions: (b, S) distance from the last prompt token.
        caption: (b, S) which caption a token belongs to, -1 on padding.
        columns: (R, T - 1) where the tokens of each caption lie.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    caption: torch.Tensor
    columns: torch.Tensor

    def predicting(self, states: torch.Tensor, captions: _Captions) -> torch.Tensor:
        """(N, D) of states (b, 1 + S, D), the first of which are those of the last prompt token."""
        columns = torch.nn.functional.pad(self.columns + 1, (1, 0), value=0)
        image = captions.image.unsqueeze(1).expand_as(columns)
        return states[image[captions.mask], columns[captions.mask]]


def _packed(captions: _Captions, num_images: int, pad_token_id: int) -> _Packed:
    is_input = captions.mask[:, 1:]
    columns = _columns(captions.image, is_input, num_images)
    width = int(columns.masked_fill(~is_input, -1).max()) + 1 if columns.numel() else 0
    place = (captions.image.unsqueeze(1).expand_as(columns)[is_input], columns[is_input])

    def laid_out(values: torch.Tensor, fill: int) -> torch.Tensor:
        out = values.new_full((num_images, width), fill)
        return out.index_put(place, values.expand_as(columns)[is_input])

    caption = torch.arange(len(captions.ids), device=columns.device).unsqueeze(1)
    return _Packed(
        laid_out(captions.ids[:, :-1], pad_token_id),
        laid_out(captions.positions[:, 1:], 0),
        laid_out(caption, -1),
        columns,
    )


def _columns(image: torch.Tensor, is_input: torch.Tensor, num_images: int) -> torch.Tensor:
    """(R, T - 1) where the tokens of each caption lie among those of all captions of its image."""
    lengths = is_input.sum(1)
    per_image = lengths.new_zeros(num_images).index_add(0, image, lengths)
    before_image = per_image.cumsum(0) - per_image
    start = lengths.cumsum(0) - lengths - before_image[image]
    return start.unsqueeze(1) + torch.arange(is_input.shape[1], device=image.device)


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


LAYOUTS: dict[str, Callable[..., torch.Tensor]] = {"packed": _packed_states, "plain": _plain_states}
