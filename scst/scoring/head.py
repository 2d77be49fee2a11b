"""The language-model head of the scoring pass, a few positions at a time.

PaliGemma's vocabulary has 257,152 tokens: float32 logits of 8 images with 5 captions of 14 tokens take 576
MB, and the maths around them holds several copies. Here no more than a chunk of them exists at any time, in
the backward pass neither.
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
"""Of derivatives: those of improbable tokens would vanish in float16. A power of two changes no digit."""

TokenFunction = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def token_scores(
    policy: Policy,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    positions: torch.Tensor,
    sampling: Sampling,
    *,
    chunk: int = CHUNK,
    entropy_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability and entropy of tokens under the sampling distribution.

    Args:
        policy: the model whose head is used.
        hidden_states: (N, D) at the positions that predict the tokens.
        ids: (N,) the tokens.
        positions: (N,) place of each token in its caption, 0 for the first.
        sampling: the distribution that the tokens were drawn from.
        chunk: positions at a time; 0 takes all of them at once.
        entropy_gradient: False makes the entropy a constant, which saves one product with the head.

    Returns:
        Logprobs and entropies, (N,) float32.
    """

    def scores(states: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor):
        logits = distribution.policy_logits(
            policy.logits(states),
            positions=positions,
            sampling=sampling,
            forbidden=policy.forbidden,
            eos_token_id=policy.eos_token_id,
            keep_ids=ids,
        )
        return distribution.logprobs_and_entropy(logits, ids, entropy_gradient=entropy_gradient)

    differentiate = torch.is_grad_enabled() and hidden_states.requires_grad and not policy.head_is_trainable
    size = chunk or max(1, len(ids))
    at_once = differentiate and (chunk or policy.head_is_divided)  # in backward the head is divided again
    with policy.whole_head():
        parts = [
            _Scores.apply(scores, entropy_gradient, *part) if at_once else scores(*part)
            for part in zip(hidden_states.split(size), ids.split(size), positions.split(size), strict=True)
        ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _Scores(torch.autograd.Function):
    """Scores of a chunk of tokens together with their derivatives, so that the logits can go at once.

    The head is frozen and a token's score depends on its own hidden state only: all that the backward pass
    needs of the chunk is one vector of D derivatives per score. Computing the logits once more in the
    backward pass (``torch.utils.checkpoint``) takes as little memory and 1.5 times as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: TokenFunction,
        entropy_gradient: bool,
        hidden_states: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            states = hidden_states.detach().requires_grad_()
            logprobs, entropy = scores(states, ids, positions)
        with torch.autocast(states.device.type, enabled=False):
            derivatives = [_derivative(logprobs, states, retain_graph=entropy_gradient)]
            if entropy_gradient:
                derivatives.append(_derivative(entropy, states))
        ctx.save_for_backward(*derivatives)
        logprobs, entropy = logprobs.detach(), entropy.detach()
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total = sum(
            (gradient / _SCALE).unsqueeze(-1) * derivative
            for gradient, derivative in zip(gradients, ctx.saved_tensors, strict=False)
        )
        return None, None, total.to(ctx.saved_tensors[0].dtype), None, None


def _derivative(values: torch.Tensor, states: torch.Tensor, *, retain_graph: bool = False) -> torch.Tensor:
    """(N, D) derivative of every value with respect to its own hidden state, times :data:`_SCALE`."""
    scale = torch.full_like(values, _SCALE)
    return torch.autograd.grad(values, states, scale, retain_graph=retain_graph)[0]
