"""Losses of the SCST stage. Sums over caption tokens, so that a mean over padding can never dilute them."""

from __future__ import annotations

import torch


def policy_gradient_loss(
    logprobs: torch.Tensor, completion_mask: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """REINFORCE with a baseline: -advantage * log p(caption) (Williams 1992; Rennie et al. 2017, equation 6).

    The log probability of a caption is the *sum* over its tokens, the end-of-sequence token included.

    Args:
        logprobs: (B, K, T) natural log probabilities under the sampling distribution.
        completion_mask: (B, K, T) bool.
        advantages: (B, K), a constant: no gradient flows into it.

    Returns:
        (B, K) loss of every caption.
    """
    _check_shapes(logprobs, completion_mask)
    if advantages.shape != logprobs.shape[:2]:
        raise ValueError(
            f"advantages must be (B, K) = {tuple(logprobs.shape[:2])}, got {tuple(advantages.shape)}"
        )
    return -advantages.detach() * _caption_sums(logprobs, completion_mask)


def kl_penalty(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """A penalty on advantages: minus w times it, they optimise reward - w * KL(policy || ref_policy).

    The divergence is the expectation of a caption's log ratio (estimator k1), so minus the log ratio acts as
    a reward, with the other samples' mean as its baseline. The k3 estimator used *as a loss*, as in GRPO,
    would descend KL(ref_policy || policy) instead.

    Args:
        logprobs: (B, K, T) of the policy that sampled.
        ref_logprobs: (B, K, T) of the frozen comparison policy.
        completion_mask: (B, K, T) bool.

    Returns:
        (B, K), no gradient.
    """
    _check_shapes(logprobs, completion_mask)
    log_ratios = _caption_sums((logprobs - ref_logprobs).detach(), completion_mask)
    if log_ratios.shape[1] == 1:
        return log_ratios  # no other sample to compare with: unbiased, but of higher variance
    # (x_k - mean over all) * K / (K - 1) is x_k minus the mean over the others: a baseline that does not
    # depend on the sample, so that the penalty's gradient stays unbiased
    num_samples = log_ratios.shape[1]
    return (log_ratios - log_ratios.mean(1, keepdim=True)) * num_samples / (num_samples - 1)


def kl_divergence(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """KL(policy || ref_policy) per caption by the k3 estimator, for the log: unbiased and never negative.

    exp(d) - 1 - d with d = ref_logprob - logprob (Schulman 2020, "Approximating KL divergence").

    Returns:
        (B, K) sums over tokens, in nats, no gradient; arguments as in :func:`kl_penalty`.
    """
    _check_shapes(logprobs, completion_mask)
    # per token, not per caption: the exponential of a sum over 30 tokens is dominated by a few captions
    difference = (ref_logprobs - logprobs).detach()
    return _caption_sums(difference.exp() - 1 - difference, completion_mask)


def importance_ratios(
    logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """p(caption) under the policy divided by p(caption) under the policy that sampled it.

    Weighted with these ratios, expectations over captions of an older policy equal those over the policy's
    own captions. Clipping them from above trades bias for bounded variance (truncated importance sampling,
    Ionides 2008).

    Args:
        logprobs: (B, K, T) of the policy.
        sampled_logprobs: (B, K, T) of the policy that sampled.
        completion_mask: (B, K, T) bool; the ratio of a caption without tokens is 1.

    Returns:
        (B, K), no gradient.
    """
    _check_shapes(logprobs, completion_mask)
    return _caption_sums((logprobs - sampled_logprobs).detach(), completion_mask).exp()


def cross_entropy_loss(logprobs: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """(B, K) negative log probability of captions, summed over tokens as in the policy-gradient loss."""
    _check_shapes(logprobs, completion_mask)
    return -_caption_sums(logprobs, completion_mask)


def _caption_sums(values: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """(B, K) sums over the tokens that count."""
    # where, not a product with the mask: 0 * -inf on padding would be NaN.
    return torch.where(completion_mask, values, 0.0).sum(-1)


def _check_shapes(logprobs: torch.Tensor, completion_mask: torch.Tensor) -> None:
    if logprobs.ndim != 3 or completion_mask.shape != logprobs.shape:
        raise ValueError(
            "expected logprobs and completion_mask of one shape (B, K, T), got "
            f"{tuple(logprobs.shape)} and {tuple(completion_mask.shape)}"
        )
