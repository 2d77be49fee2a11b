"""Losses on literal log probabilities: sums over the tokens that count, whatever stands on the others."""

from __future__ import annotations

import math

import pytest
import torch

from scst.objective.losses import (
    cross_entropy_loss,
    importance_ratios,
    kl_divergence,
    kl_penalty,
    policy_gradient_loss,
)

LOGPROBS = [[[-0.1, -0.2, -0.7], [-0.5, -0.3, -0.4]]]
MASK = [[[True, True, False], [True, True, True]]]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """One image, two captions of two and three tokens."""
    return torch.tensor(LOGPROBS, requires_grad=True), torch.tensor(MASK)


def random_example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logprobs of two policies and a mask, (3, 4, 6)."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, ref_logprobs = -torch.rand(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 7, (3, 4, 1), generator=generator)
    return logprobs, ref_logprobs, torch.arange(6) < lengths


def assert_close(actual: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)


def test_policy_gradient_loss_literally():
    # -2 * (-0.1 - 0.2) = 0.6; the third token is padding
    # -(-0.5) * (-0.5 - 0.3 - 0.4) = -0.6
    logprobs, mask = example()
    assert_close(policy_gradient_loss(logprobs, mask, torch.tensor([[2.0, -0.5]])), [[0.6, -0.6]])


def test_policy_gradient_is_minus_the_advantage_on_every_token_that_counts():
    logprobs, mask = example()
    advantages = torch.tensor([[2.0, -0.5]], requires_grad=True)
    policy_gradient_loss(logprobs, mask, advantages).sum().backward()
    assert_close(logprobs.grad, [[[-2.0, -2.0, 0.0], [0.5, 0.5, 0.5]]])
    assert advantages.grad is None, "the advantage is a constant"


def losses(logprobs: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every loss and every estimate of the divergence, on one caption batch."""
    advantages = torch.linspace(-1, 1, mask[..., 0].numel()).view(mask.shape[:2])
    ref_logprobs = torch.where(mask, -0.25, logprobs.detach())
    return {
        "policy_gradient": policy_gradient_loss(logprobs, mask, advantages),
        "cross_entropy": cross_entropy_loss(logprobs, mask),
        "kl_divergence": kl_divergence(logprobs, ref_logprobs, mask),
        "kl_penalty": kl_penalty(logprobs, ref_logprobs, mask),
    }


def test_padding_length_changes_nothing():
    """A mean over positions would shrink with every position of padding."""
    logprobs, mask = example()
    longer = torch.nn.functional.pad(logprobs, (0, 7))
    longer_mask = torch.nn.functional.pad(mask, (0, 7), value=False)
    for name, value in losses(longer, longer_mask).items():
        torch.testing.assert_close(value, losses(logprobs, mask)[name])


@pytest.mark.parametrize("garbage", [7.5, -1e30, -math.inf, math.nan])
def test_nothing_on_masked_positions_counts(garbage):
    logprobs, mask = example()
    spoiled = torch.where(mask, logprobs.detach(), garbage).requires_grad_()
    expected = losses(logprobs, mask)
    for name, value in losses(spoiled, mask).items():
        torch.testing.assert_close(value, expected[name])
    (losses(spoiled, mask)["policy_gradient"] + losses(spoiled, mask)["cross_entropy"]).sum().backward()
    assert torch.equal(spoiled.grad[~mask], torch.zeros(1))
    assert torch.isfinite(spoiled.grad).all()


def test_kl_divergence_literally():
    # k3 = exp(d) - 1 - d with d = ref_logprob - logprob = log 2 and -log 2:
    # 2 - 1 - log 2 = 0.3068528 and 0.5 - 1 + log 2 = 0.1931472, together 0.5; the third token is padding
    log_2 = math.log(2)
    logprobs = torch.tensor([[[-1.0, -1.0, -1.0]]])
    ref_logprobs = logprobs + torch.tensor([log_2, -log_2, 5.0])
    assert_close(kl_divergence(logprobs, ref_logprobs, torch.tensor([[[True, True, False]]])), [[0.5]])


def test_kl_divergence_is_never_negative_and_zero_at_equality():
    logprobs, ref_logprobs, mask = random_example()
    assert (kl_divergence(logprobs, ref_logprobs, mask) > 0).all()
    assert torch.equal(kl_divergence(logprobs, logprobs, mask), torch.zeros(3, 4, dtype=torch.float64))


def test_kl_divergence_is_unbiased():
    """By enumeration of one token: sum p (q/p - 1 - log(q/p)) = sum p log(p/q), as sum q = sum p = 1."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    mask = torch.ones(1, 3, 1, dtype=torch.bool)
    estimates = kl_divergence(p.log().view(1, 3, 1), q.log().view(1, 3, 1), mask)
    torch.testing.assert_close((p * estimates[0]).sum(), (p * (p / q).log()).sum())


def test_kl_penalty_literally():
    # log ratios of the captions: (-0.3 + 0.5) = 0.2 and (-1.2 + 0.9) = -0.3
    # each minus the other's: 0.2 + 0.3 = 0.5 and -0.5
    logprobs, mask = example()
    ref_logprobs = torch.tensor([[[-0.3, -0.2, 0.0], [-0.4, -0.3, -0.2]]])
    assert_close(kl_penalty(logprobs, ref_logprobs, mask), [[0.5, -0.5]])


def test_kl_penalty_is_centred_and_zero_at_equality():
    logprobs, ref_logprobs, mask = random_example()
    penalty = kl_penalty(logprobs, ref_logprobs, mask)
    torch.testing.assert_close(penalty.sum(1), torch.zeros(3, dtype=torch.float64))
    assert penalty.abs().max() > 0.1
    assert torch.equal(kl_penalty(logprobs, logprobs, mask), torch.zeros(3, 4, dtype=torch.float64))


def test_kl_penalty_of_a_single_sample_is_its_log_ratio():
    # nothing to centre on: -0.3 + 0.5 = 0.2
    logprobs, mask = example()
    ref_logprobs = torch.tensor([[[-0.3, -0.2, 0.0]]])
    assert_close(kl_penalty(logprobs[:, :1], ref_logprobs, mask[:, :1]), [[0.2]])


def test_divergences_carry_no_gradient():
    logprobs, mask = example()
    assert not kl_penalty(logprobs, logprobs * 2, mask).requires_grad
    assert not kl_divergence(logprobs, logprobs * 2, mask).requires_grad


def test_importance_ratios_by_hand():
    # log p - log q of the tokens that count: 0.1 - 0.3 = -0.2; 0.5; a caption without any
    logprobs = torch.tensor(
        [[[-0.9, -1.0, -9.0], [-0.5, -1.0, -1.0], [-1.0, -1.0, -1.0]]], requires_grad=True
    )
    sampled = torch.tensor([[[-1.0, -0.7, 0.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, False], [True, True, True], [False, False, False]]])
    ratios = importance_ratios(logprobs, sampled, mask)
    assert_close(ratios, [[math.exp(-0.2), math.exp(0.5), 1.0]])
    assert not ratios.requires_grad


def test_cross_entropy_equals_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 11, generator=generator)
    ids = torch.randint(0, 11, (2, 3, 5), generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (2, 3, 1), generator=generator)
    logprobs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), ids.masked_fill(~mask, -100).flatten(), reduction="sum", ignore_index=-100
    )
    torch.testing.assert_close(cross_entropy_loss(logprobs, mask).sum(), expected)


def test_shapes_are_refused():
    logprobs, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one shape \(B, K, T\), got \(2, 3, 4\) and \(2, 3, 5\)"):
        cross_entropy_loss(logprobs, torch.ones(2, 3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one shape \(B, K, T\), got \(6, 4\)"):
        kl_penalty(logprobs.flatten(0, 1), logprobs.flatten(0, 1), mask.flatten(0, 1))
    with pytest.raises(ValueError, match=r"advantages must be \(B, K\) = \(2, 3\), got \(3, 2\)"):
        policy_gradient_loss(logprobs, mask, torch.zeros(3, 2))
