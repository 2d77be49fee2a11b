"""At the first step of a run: what was sampled and what is scored must be one distribution.

Sampling and scoring compute the same log probabilities in different ways (a cache and one token at a time
against all tokens of all captions at once); :mod:`scst.scoring.agreement` says how far they may lie apart.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from scst.errors import ScstError
from scst.scoring.agreement import LogprobGap
from scst.types import Rollout, select_images

EXTRA_PADDING = 3
"""Columns of padding that the second pass has before its prompts."""


def check_logprobs(gap: LogprobGap) -> None:
    """Refuse to train on captions of another distribution.

    Raises:
        ScstError: when the gap is above its limit, or is no number.
    """
    if not gap.is_rounding:
        raise ScstError(
            f"sampled and re-scored log probabilities differ by {gap}: sampling and scoring do not see the "
            "same policy. Try scoring: plain and attn_implementation: eager, and report the library versions "
            "in run.json"
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
