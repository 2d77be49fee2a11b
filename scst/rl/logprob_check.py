"""At the first step of a run: what was sampled and what is scored must be one distribution.

Sampling and scoring compute the same log probabilities in different ways (a cache and one token at a time
against all tokens of all captions at once). Between them lies rounding, and nothing else: a wrong mask, a
shifted position, another temperature are bugs that bias every gradient and that no other number shows.

How much rounding is honest depends on the model and its precision. It is measured on the model itself: the
same captions are scored once more in the same layout, with the images in another order and the prompts behind
more padding. No mathematical quantity changes, so what differs is rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scst.errors import ScstError
from scst.types import PromptBatch, Rollout

FLOORS = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Mean gaps in nats per token that are always allowed, by precision of computation."""
ROUNDING_FACTOR = 8.0
"""How many times the model's own rounding the mean gap may be."""
CEILING = 8e-2
"""Above this mean gap no rounding is an excuse: bugs that were injected gave 0.1 to 0.26."""
EXTRA_PADDING = 3
"""Columns of padding that the second pass has before its prompts."""


@dataclass(frozen=True)
class LogprobGap:
    """What the check compares, all in nats per token.

    Attributes:
        mean: gap between sampled and scored log probabilities, over the tokens of the scored captions.
        rounding: the same between two scoring passes of one layout.
        limit: for ``mean``.
    """

    mean: float
    rounding: float
    limit: float


def logprob_gap(
    scored: torch.Tensor, again: torch.Tensor, sampled: torch.Tensor, known: torch.Tensor, dtype: torch.dtype
) -> LogprobGap:
    """Compare sampled with scored log probabilities.

    Args:
        scored: (B, K, T) log probabilities of the scoring pass.
        again: (B, K, T) of a second one that differs by rounding only.
        sampled: (B, K, T) that the tokens were drawn with.
        known: (B, K, T) bool, tokens whose scores are known.
        dtype: of computation.
    """
    mean, rounding = (
        torch.where(known, (scored - other).abs(), 0.0).sum().item() / max(1, int(known.sum()))
        for other in (sampled, again)
    )
    limit = min(CEILING, max(FLOORS[dtype], ROUNDING_FACTOR * rounding))
    return LogprobGap(mean, rounding, limit)


def check_logprobs(gap: LogprobGap) -> None:
    """Refuse to train on captions of another distribution.

    Raises:
        ScstError: when the gap is above its limit, or is no number.
    """
    if not gap.mean <= gap.limit:
        raise ScstError(
            f"sampled and re-scored log probabilities differ by {gap.mean:.4f} nats per token on average "
            f"(limit {gap.limit:.4f}; rounding of this model {gap.rounding:.4f}): sampling and scoring do not "
            "see the same policy. Try scoring: plain and attn_implementation: eager, and report the library "
            "versions in run.json"
        )


def with_other_rounding(rollout: Rollout, pad_token_id: int) -> Rollout:
    """The same captions after the same prompts, computed in another order of additions.

    The images are reversed and every prompt gets more padding before it: sums over keys and rows of matrix
    products change their order, and no result changes by more than that.
    """
    prompts = rollout.prompts
    padded = torch.nn.functional.pad
    reversed_prompts = PromptBatch(
        padded(prompts.input_ids, (EXTRA_PADDING, 0), value=pad_token_id).flip(0),
        padded(prompts.attention_mask, (EXTRA_PADDING, 0), value=False).flip(0),
        prompts.pixel_values.flip(0),
    )
    features = rollout.image_features
    return replace(
        rollout,
        prompts=reversed_prompts,
        completion_ids=rollout.completion_ids.flip(0),
        completion_mask=rollout.completion_mask.flip(0),
        image_features=None if features is None else features.flip(0),
        prompt_cache=None,
    )
