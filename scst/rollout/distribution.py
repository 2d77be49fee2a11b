"""Small tensor maths shared by rollout and scoring: the sampling distribution and how to draw from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from scst.types import Sampling


def policy_logits(
    logits: torch.Tensor,
    *,
    positions: torch.Tensor,
    sampling: Sampling,
    forbidden: torch.Tensor,
    eos_token_id: int,
    keep_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of the distribution that completions are drawn from and scored under.

    Args:
        logits: (..., V) raw logits.
        positions: (...) caption position of each row, 0 for the first token.
        sampling: temperature, top-k, top-p and minimal length.
        forbidden: (V,) bool, tokens a caption must never hold (image placeholders, padding, ...).
        eos_token_id: impossible before ``sampling.min_new_tokens`` tokens.
        keep_ids: (...) tokens that top-k and top-p may not remove. Scoring passes the drawn tokens, so that a
            rounding difference at the edge of the kept set cannot give a drawn token probability zero.

    Returns:
        (..., V) float32 logits, ``-inf`` where the probability is zero.
    """
    impossible = forbidden
    too_early = positions < sampling.min_new_tokens
    if too_early.any():
        is_eos = torch.arange(logits.shape[-1], device=logits.device) == eos_token_id
        impossible = forbidden | (too_early.unsqueeze(-1) & is_eos)
    logits = logits.float().masked_fill(impossible, -torch.inf)  # every pass over V numbers counts here
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return logits
    removed = _outside_top_k(logits, sampling.top_k)
    # The nucleus of what top-k left, as in transformers: top-k first changes the probability mass.
    removed = removed | _outside_top_p(logits.masked_fill(removed, -torch.inf), sampling.top_p)
    if keep_ids is not None:
        removed = removed.scatter(-1, keep_ids.unsqueeze(-1), False)
    return logits.masked_fill(removed, -torch.inf)


def _outside_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """(..., V) bool, True on tokens below the k-th most probable; all False when ``top_k`` is 0."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return torch.zeros_like(logits, dtype=torch.bool)
    threshold = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits < threshold


def _outside_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """(..., V) bool, True outside the smallest set of probability mass ``top_p`` (Holtzman et al. 2020).

    The order of equal logits and the direction of the sum are those of transformers' ``TopPLogitsWarper``:
    tokens are removed from the least probable up while their mass together is at most 1 - top_p.
    """
    if top_p >= 1.0:
        return torch.zeros_like(logits, dtype=torch.bool)
    ordered, order = logits.sort(dim=-1, descending=False)
    outside = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[..., -1] = False  # rounding must not remove the most probable token
    return torch.zeros_like(outside).scatter(-1, order, outside)


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(...) natural log probability of ``ids`` under softmax of ``logits`` (..., V)."""
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def logprobs_and_entropy(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability of ``ids`` (...) and entropy in nats (...) of softmax of ``logits`` (..., V)."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    finite = logprobs.clamp(min=-1000.0)  # exp(-inf) * -inf is NaN; exp(-1000) * -1000 is the 0 it should be
    return chosen, -(logprobs.exp() * finite).sum(-1)


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one token per row by inverting the distribution function at a given uniform number.

    A draw is a function of ``(logits, uniform)`` alone: it depends neither on the device's generator nor on
    which other images share the batch, so a rollout can be repeated, resumed or spread over devices exactly.

    Args:
        logits: (N, V) logits of the sampling distribution.
        uniforms: (N,) numbers in [0, 1).

    Returns:
        (N,) token ids, each with non-zero probability.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    targets = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def rollout_uniforms(
    image_ids: Sequence[str], *, seed: int, step: int, num_samples: int, length: int
) -> torch.Tensor:
    """(B, K, T) uniform numbers for the draws of one step, a function of (seed, step, image id) only."""
    rows = []
    for image_id in image_ids:
        digest = hashlib.blake2b(f"{seed}|{step}|{image_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        rows.append(torch.rand(num_samples, length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` where ``mask`` is True; 0 when it is nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
