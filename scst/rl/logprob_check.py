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
from scst.types import Rollout, select_images

LIMITS = {torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 1.2e-2}
"""Relative gaps that are always allowed, by precision of computation: about the rounding of a logit."""
ROUNDING_FACTOR = 8.0
"""How many times the model's own relative rounding the gap may be."""
CEILING = 8e-2
"""Above this relative gap no rounding is an excuse."""
NEGLIGIBLE = 1e-5
"""Mean gap in nats per token that is no reason to stop, however certain the policy is of its tokens."""
EXTRA_PADDING = 3
"""Columns of padding that the second pass has before its prompts."""


@dataclass(frozen=True)
class LogprobGap:
    """What the check compares.

    A token that the policy is certain of hides an error: its log probability is 0 with or without it. So the
    gap is taken relative to the mean of -log p. For an error d of the logits, the log probability of a token
    of probability p changes by about d (1 - p), which is about d times -log p: the ratio is the error of the
    logits, whatever the entropy of the policy.

    Attributes:
        mean: gap between sampled and scored log probabilities, in nats per token of the scored captions.
        relative: the same over the mean of -log p of these tokens.
        rounding: the relative gap between two scoring passes of one layout.
        limit: for ``relative``.
    """

    mean: float
    relative: float
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
    count = max(1, int(known.sum()))
    mean, other, surprise = (
        torch.where(known, values.abs(), 0.0).sum().item() / count
        for values in (scored - sampled, scored - again, sampled)
    )
    relative, rounding = (gap / max(surprise, 1e-12) for gap in (mean, other))
    limit = min(CEILING, max(LIMITS[dtype], ROUNDING_FACTOR * rounding))
    return LogprobGap(mean, relative, rounding, limit)


def check_logprobs(gap: LogprobGap) -> None:
    """Refuse to train on captions of another distribution.

    Raises:
        ScstError: when the gap is above its limit, or is no number.
    """
    if not (gap.mean <= NEGLIGIBLE or gap.relative <= gap.limit):
        raise ScstError(
            f"sampled and re-scored log probabilities differ by {gap.mean:.4f} nats per token on average, "
            f"{gap.relative:.1%} of their size (limit {gap.limit:.1%}; rounding of this model "
            f"{gap.rounding:.1%}): sampling and scoring do not see the same policy. Try scoring: plain and "
            "attn_implementation: eager, and report the library versions in run.json"
        )


def with_other_rounding(rollout: Rollout, pad_token_id: int) -> Rollout:
    """The same captions after the same prompts, computed in another order of additions.

    The images are reversed and every prompt gets more padding before it: sums over keys and rows of matrix
    products change their order, and no result changes by more than that.
    """
    backwards = torch.arange(len(rollout)).flip(0)
    features = rollout.image_features
    return replace(
        rollout,
        prompts=rollout.prompts.select(backwards).padded(EXTRA_PADDING, pad_token_id),
        completion_ids=rollout.completion_ids.flip(0),
        completion_mask=rollout.completion_mask.flip(0),
        image_features=None if features is None else select_images(features, backwards),
        prompt_cache=None,
    )
