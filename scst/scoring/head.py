"""The language-model head of the scoring pass, a few positions at a time.

PaliGemma's vocabulary has 257,152 tokens: float32 logits of 8 images with 5 captions of 14 tokens take 576
MB, and the maths around them holds several copies. Here at most one chunk of them exists at any time, in the
backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scst.models.policy import Policy
from scst.rollout import distribution
from scst.types import Sampling

CHUNK = 128
"""Positions at a time: 132 MB of float32 logits of PaliGemma's vocabulary; fewer would starve a GPU."""

_SCALE = 256.0
"""Factor of stored derivatives: without it those of probable tokens underflow in float16. A power of two is
exact."""

ScoreFunction = Callable[..., tuple[torch.Tensor, ...]]


def token_scores(
    policy: Policy,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    positions: torch.Tensor,
    sampling: Sampling,
    *,
    chunk: int = CHUNK,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log probability and, where asked for, entropy of tokens under the sampling distribution.

    Args:
        policy: the model whose head is used.
        hidden_states: (N, D) at the positions that predict the tokens.
        ids: (N,) the tokens.
        positions: (N,) index of each token in its caption, 0 for the first.
        sampling: the distribution that the tokens were drawn from.
        chunk: positions at a time; 0 takes all of them at once.
        with_entropy: compute entropies too, with gradients.

    Returns:
        Logprobs (N,) float32, and entropies (N,) float32 or None.
    """

    def scores(states: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = distribution.policy_logits(
            policy.logits(states),
            positions=positions,
            sampling=sampling,
            forbidden=policy.forbidden,
            eos_token_id=policy.eos_token_id,
            keep_ids=ids,
        )
        if with_entropy:
            return distribution.logprobs_and_entropy(logits, ids)
        return (distribution.token_logprobs(logits, ids),)

    differentiate = torch.is_grad_enabled() and hidden_states.requires_grad and not policy.head_is_trainable
    size = chunk or max(1, len(ids))
    # A sharded head is released before the backward pass, which therefore must not need it: take the
    # derivatives in the forward pass even where nothing is chunked.
    early = differentiate and (chunk or policy.head_is_sharded)
    with policy.unsharded_head():
        parts = [
            _Scores.apply(scores, *part) if early else scores(*part)
            for part in zip(hidden_states.split(size), ids.split(size), positions.split(size), strict=True)
        ]
    logprobs, *entropies = (torch.cat(values) for values in zip(*parts, strict=True))
    return logprobs, entropies[0] if entropies else None


class _Scores(torch.autograd.Function):
    """Scores of a chunk of tokens together with their derivatives, so that the logits can be freed at once.

    The head is frozen and a token's score depends on its own hidden state only: all that the backward pass
    needs of the chunk is one vector of D derivatives per score. Computing the logits once more in the
    backward pass (``torch.utils.checkpoint``) takes as little memory and 1.5 times as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: ScoreFunction,
        hidden_states: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            states = hidden_states.detach().requires_grad_()
            values = scores(states, ids, positions)
        # Backward ops follow the autocast of their forward op; a second autocast here would cast again.
        with torch.autocast(states.device.type, enabled=False):
            derivatives = [_derivative(v, states, retain_graph=v is not values[-1]) for v in values]
        ctx.save_for_backward(*derivatives)
        return tuple(v.detach() for v in values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Row n of the Jacobian is non-zero at token n only, so the product is one scaling per token.
        terms = [
            (gradient / _SCALE).unsqueeze(-1) * derivative
            for gradient, derivative in zip(gradients, ctx.saved_tensors, strict=True)
        ]
        return None, sum(terms).to(ctx.saved_tensors[0].dtype), None, None


def _derivative(values: torch.Tensor, states: torch.Tensor, *, retain_graph: bool = False) -> torch.Tensor:
    """(N, D) derivative of every value with respect to its own hidden state, times :data:`_SCALE`."""
    scale = torch.full_like(values, _SCALE)
    return torch.autograd.grad(values, states, scale, retain_graph=retain_graph)[0]
