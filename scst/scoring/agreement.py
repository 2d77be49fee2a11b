"""How far two ways of computing the same log probabilities may lie apart.

Between them is rounding, and nothing else: a wrong mask, a shifted position, another temperature are bugs
that bias every gradient and that no other number shows. How much rounding is honest depends on the model
and its precision. It is measured on the model itself: one of the ways is taken once more, with the images
in another order and the prompts behind more padding. No mathematical quantity changes, so what differs is
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LIMITS = {torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 1.2e-2}
"""Relative gaps that are always allowed, by precision of computation: about the rounding of a logit."""
ROUNDING_FACTOR = 8.0
"""How many times the model's own relative rounding the gap may be."""
CEILING = 8e-2
"""Above this relative gap no rounding is an excuse."""
NEGLIGIBLE = 1e-5
"""Mean gap in nats per token that is no reason to stop, however certain the policy is of its tokens."""


@dataclass(frozen=True)
class LogprobGap:
    """The gap between two ways of computing the log probabilities of some captions.

    A token that the policy is certain of hides an error: its log probability is 0 with or without it. So the
    gap is taken relative to the mean of -log p. For an error d of the logits, the log probability of a token
    of probability p changes by about d (1 - p), which is about d times -log p: the ratio is the error of the
    logits, whatever the entropy of the policy.

    Attributes:
        mean: gap in nats per token.
        relative: the same over the mean of -log p of these tokens.
        rounding: the relative gap between two passes of one way.
        limit: for ``relative``.
    """

    mean: float
    relative: float
    rounding: float
    limit: float

    @property
    def is_rounding(self) -> bool:
        """Whether the gap is small enough; a gap that is no number is not."""
        return self.mean <= NEGLIGIBLE or self.relative <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} nats per token on average, {self.relative:.1%} of their size (limit "
            f"{self.limit:.1%}; rounding of this model {self.rounding:.1%})"
        )


def logprob_gap(
    scored: torch.Tensor, again: torch.Tensor, sampled: torch.Tensor, known: torch.Tensor, dtype: torch.dtype
) -> LogprobGap:
    """Compare log probabilities.

    Args:
        scored: (B, K, T) of one way, the scoring pass.
        again: (B, K, T) of the same way, taken once more.
        sampled: (B, K, T) of the other way, e.g. those that the tokens were drawn with.
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
