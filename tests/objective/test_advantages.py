"""Advantages on literal rewards; the derivation stands above each assertion."""

from __future__ import annotations

import math

import pytest
import torch

from scst.objective.advantages import BASELINES, advantage_magnitudes, compute_advantages

NAN = math.nan


def advantages(baseline: str, sampled: list[list[float]], greedy: list[float]) -> torch.Tensor:
    return compute_advantages(baseline, torch.tensor(sampled), torch.tensor(greedy))


def assert_close(actual: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)


def test_greedy():
    # image 0: 1.0 - 0.5 = 0.5, 0.2 - 0.5 = -0.3; image 1: 0.0 - 0.4 = -0.4, 0.4 - 0.4 = 0
    assert_close(advantages("greedy", [[1.0, 0.2], [0.0, 0.4]], [0.5, 0.4]), [[0.5, -0.3], [-0.4, 0.0]])


def test_greedy_works_with_one_sample():
    assert_close(advantages("greedy", [[0.9]], [0.4]), [[0.5]])


def test_leave_one_out():
    # others' means of (1, 2, 6): (2 + 6) / 2 = 4, (1 + 6) / 2 = 3.5, (1 + 2) / 2 = 1.5
    # 1 - 4 = -3, 2 - 3.5 = -1.5, 6 - 1.5 = 4.5; the greedy reward plays no part
    for greedy in (0.0, 9.0):
        assert_close(advantages("leave_one_out", [[1.0, 2.0, 6.0]], [greedy]), [[-3.0, -1.5, 4.5]])


def test_group():
    # mean of (1, 2, 6) is 3; variance ((-2)^2 + (-1)^2 + 3^2) / (3 - 1) = 7, sqrt 7 = 2.6457513; epsilon 1e-4
    # -2 / 2.6458513 = -0.7559003, -1 / 2.6458513 = -0.3779502, 3 / 2.6458513 = 1.1338505
    assert_close(advantages("group", [[1.0, 2.0, 6.0]], [0.0]), [[-0.7559003, -0.3779502, 1.1338505]])


@pytest.mark.parametrize("baseline", BASELINES)
def test_images_do_not_mix(baseline):
    """Every row alone gives what it gives in the batch."""
    sampled = [[1.0, 2.0, 6.0], [0.1, 0.7, 0.3]]
    together = advantages(baseline, sampled, [0.5, 0.2])
    alone = [advantages(baseline, [row], [g]) for row, g in zip(sampled, [0.5, 0.2], strict=True)]
    assert torch.equal(together, torch.cat(alone))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("baseline", BASELINES)
def test_equal_rewards_give_exact_zeros(baseline, dtype):
    """No binary fraction among them, every K, with and without NaN: the mean of copies may round away."""
    generator = torch.Generator().manual_seed(0)
    for num_samples in range(2, 17):
        rewards = (100 * torch.rand(200, generator=generator, dtype=torch.float64)).to(dtype)
        sampled = rewards[:, None].repeat(1, num_samples)
        sampled[torch.rand(sampled.shape, generator=generator) < 0.3] = NAN
        sampled[::2] = rewards[::2, None]
        values = compute_advantages(baseline, sampled, rewards)
        assert values.dtype == dtype
        assert not values.any(), f"K = {num_samples}: {(values != 0).any(1).float().mean():.0%} of images"


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
def test_shares_of_equal_contributions_are_exact_zeros(baseline):
    contributions = torch.full((2, 1, 7), 0.1)
    assert not advantage_magnitudes(baseline, contributions, torch.zeros(2, 1)).any()


def test_nearly_equal_rewards_are_not_taken_for_equal():
    rewards = torch.tensor([[0.1, 0.1, math.nextafter(0.1, 1.0)]], dtype=torch.float64)
    assert compute_advantages("leave_one_out", rewards, torch.zeros(1, dtype=torch.float64)).all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_sample_without_opinion_is_as_if_it_had_not_been_drawn(baseline):
    with_gap = advantages(baseline, [[1.0, NAN, 2.0, 6.0]], [0.5])
    without = advantages(baseline, [[1.0, 2.0, 6.0]], [0.5])
    assert with_gap[0, 1] == 0
    assert_close(with_gap[:, [0, 2, 3]], without.tolist())


def test_leave_one_out_with_no_opinion_literally():
    # opinions 1 and 3: each is compared with the other one: 1 - 3 = -2, 3 - 1 = 2
    assert_close(advantages("leave_one_out", [[1.0, NAN, 3.0]], [0.0]), [[-2.0, 0.0, 2.0]])


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
def test_a_single_opinion_has_nothing_to_be_compared_with(baseline):
    assert_close(advantages(baseline, [[NAN, 3.0, NAN]], [1.0]), [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("baseline", BASELINES)
def test_no_opinion_at_all_gives_zeros(baseline):
    assert_close(advantages(baseline, [[NAN, NAN], [1.0, 3.0]], [NAN, 2.0])[:1], [[0.0, 0.0]])


def test_greedy_without_an_opinion_on_the_greedy_caption_gives_zeros():
    assert_close(advantages("greedy", [[1.0, 2.0], [1.0, 2.0]], [NAN, 1.0]), [[0.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
def test_one_sample_is_refused(baseline):
    with pytest.raises(ValueError, match=rf"{baseline} baseline needs num_samples >= 2, got 1"):
        advantages(baseline, [[1.0]], [0.0])


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    ("sampled", "greedy"), [((4,), (4,)), ((2, 3, 1), (2,)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), ())]
)
def test_shapes_are_refused(baseline, sampled, greedy):
    with pytest.raises(ValueError, match=r"expected sampled_rewards \(B, K\) and greedy_rewards \(B,\), got"):
        compute_advantages(baseline, torch.zeros(sampled), torch.zeros(greedy))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown baseline 'beam'; known: greedy, leave_one_out, group"):
        advantages("beam", [[1.0]], [0.0])
