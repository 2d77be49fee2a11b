"""Advantages: what a sampled caption's reward is compared with. Pure functions of rewards.

The estimators differ and are named. ``greedy`` and ``leave_one_out`` leave the policy gradient unbiased,
because the baseline does not depend on the sample it is subtracted from. ``group`` does not: its mean
contains the sample (a factor (K - 1) / K) and the standard deviation rescales every image, so its expected
direction is a reweighted one. The beam average, used in some code bases, is no valid baseline and is not
offered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def greedy_advantages(sampled_rewards: torch.Tensor, greedy_rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the reward of the greedy caption (Rennie et al. 2017, arXiv:1612.00563, equation 8).

    Args:
        sampled_rewards: (B, K).
        greedy_rewards: (B,).

    Returns:
        (B, K) advantages.
    """
    _check_shapes(sampled_rewards, greedy_rewards)
    return sampled_rewards - greedy_rewards.unsqueeze(1)


def leave_one_out_advantages(sampled_rewards: torch.Tensor, greedy_rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of the other samples (Kool et al. 2019; Luo 2020, arXiv:2003.09971).

    NaN rewards are left out: with n opinions among the K samples, n takes the place of K.

    Raises:
        ValueError: when K is 1: there is no other sample.
    """
    _check_shapes(sampled_rewards, greedy_rewards)
    num_samples = sampled_rewards.shape[1]
    if num_samples < 2:
        raise ValueError("the leave_one_out baseline needs num_samples >= 2, got 1: use baseline: greedy")
    centred, count = _centred(sampled_rewards)
    # r - mean of the others = (r - mean of all) * n / (n - 1); one opinion alone has no other: 0 * 1 / 1 = 0
    return (centred * count / (count - 1).clamp(min=1)).to(sampled_rewards.dtype)


def group_advantages(
    sampled_rewards: torch.Tensor, greedy_rewards: torch.Tensor, *, epsilon: float = 1e-4
) -> torch.Tensor:
    """Rewards standardised within the samples of an image (GRPO, Shao et al. 2024, arXiv:2402.03300, section
    4.1).

    NaN rewards are left out of mean and standard deviation.

    Raises:
        ValueError: when K is 1.
    """
    _check_shapes(sampled_rewards, greedy_rewards)
    if sampled_rewards.shape[1] < 2:
        raise ValueError("the group baseline needs num_samples >= 2, got 1: use baseline: greedy")
    centred, count = _centred(sampled_rewards)
    # Bessel's correction (n - 1), as in torch.std and GRPO's implementations. `epsilon` matters only where
    # all rewards are nearly equal: it keeps rounding noise from becoming advantages of size 1.
    variance = centred.square().nansum(1, keepdim=True) / (count - 1).clamp(min=1)
    return (centred / (variance.sqrt() + epsilon)).to(sampled_rewards.dtype)


BASELINES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "greedy": greedy_advantages,
    "leave_one_out": leave_one_out_advantages,
    "group": group_advantages,
}


def compute_advantages(
    baseline: str, sampled_rewards: torch.Tensor, greedy_rewards: torch.Tensor
) -> torch.Tensor:
    """Advantages (B, K) by the name of the baseline; 0 where a reward is NaN ("no opinion").

    The other samples of the image get the advantages that they would have if the sample had not been drawn.

    Raises:
        ValueError: on an unknown name.
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; known: {', '.join(BASELINES)}")
    advantages = BASELINES[baseline](sampled_rewards, greedy_rewards)
    return advantages.masked_fill(advantages.isnan(), 0.0)


def _centred(rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards minus the mean of their image, and how many there are of it.

    Args:
        rewards: (..., K), NaN where there is no opinion.

    Returns:
        (..., K) float64, NaN where the reward is; exactly 0 where all rewards of an image are equal. And
        (..., 1) how many are not NaN.
    """
    known = ~rewards.isnan()
    count = known.sum(-1, keepdim=True)
    # The mean of K equal numbers differs from them by rounding, and captions whose advantage is not exactly 0
    # are scored. Equal numbers minus the first of them are exact zeros, whose mean is 0.
    first = rewards.gather(-1, known.int().argmax(-1, keepdim=True))
    shifted = rewards.double() - first.double()
    return shifted - shifted.nanmean(-1, keepdim=True), count


def _check_shapes(sampled_rewards: torch.Tensor, greedy_rewards: torch.Tensor) -> None:
    if sampled_rewards.ndim != 2 or greedy_rewards.shape != sampled_rewards.shape[:1]:
        raise ValueError(
            "expected sampled_rewards (B, K) and greedy_rewards (B,), got "
            f"{tuple(sampled_rewards.shape)} and {tuple(greedy_rewards.shape)}"
        )


def advantage_magnitudes(baseline: str, sampled: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
    """How much of the advantages every reward of a mixture makes up.

    The advantage is linear in the contributions c_i = w_i * r_i of the rewards: with a_i the advantages of
    c_i alone against the same baseline, their sum is the advantage of the sum. The share of reward i is the
    sum of |a_i| over all captions, over that of all rewards. The ``group`` baseline is taken before its
    division by the standard deviation, which is of the sum and scales all a_i alike.

    Args:
        baseline: name of the baseline.
        sampled: (R, B, K) contributions of R rewards, 0 where one of them had no opinion, NaN where none had.
        greedy: (R, B) of the greedy captions.

    Returns:
        (R,) sums of |a_i|.
    """
    if baseline == "group":
        advantages, _ = _centred(sampled)
    else:
        pairs = zip(sampled, greedy, strict=True)
        advantages = torch.stack([compute_advantages(baseline, *pair) for pair in pairs])
    return advantages.nan_to_num(0.0).abs().sum((1, 2)).to(sampled.dtype)
