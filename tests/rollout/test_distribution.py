"""The sampling distribution on literal logits, draws from it, and gradients through impossible tokens."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scst.rollout import distribution
from scst.types import Sampling

INF = math.inf
EOS = 0


def kept(
    probabilities: list[float],
    *,
    position: int = 5,
    forbidden: tuple[int, ...] = (),
    keep: int | None = None,
    **sampling,
) -> list[int]:
    """The tokens with non-zero probability after one call of ``policy_logits``."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    mask = torch.zeros(len(probabilities), dtype=torch.bool)
    mask[list(forbidden)] = True
    shaped = distribution.policy_logits(
        logits,
        positions=torch.tensor(position),
        sampling=Sampling(**sampling),
        forbidden=mask,
        eos_token_id=EOS,
        keep_ids=None if keep is None else torch.tensor(keep),
    )
    return shaped.isfinite().nonzero().flatten().tolist()


P = [0.1, 0.4, 0.05, 0.3, 0.15]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        # 0.4 < 0.5, 0.4 + 0.3 = 0.7 >= 0.5: the token that crosses the line belongs to the set
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.75}, [1, 3, 4]),
        ({"top_p": 0.9}, [0, 1, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_k": 2, "top_p": 0.9}, [1, 3]),
    ],
    ids=str,
)
def test_kept_tokens(sampling, expected):
    assert kept(P, **sampling) == expected


def test_the_nucleus_is_of_what_top_k_left():
    # top 3 are .4, .3, .15 of .85 = 47 %, 35 %, 18 %: two reach 80 % of these, but only 70 % of everything
    assert kept(P, top_k=3, top_p=0.8) == [1, 3]


def library_logits(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What ``generate`` samples from with these settings."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1.0 else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("top_k", [0, 1, 5, 20, 64, 99])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_the_distribution_is_that_of_transformers(top_k, top_p, ties):
    """On random logits, some of them equal or impossible, at several temperatures."""
    for seed, temperature in enumerate((0.5, 1.0, 1.7)):
        logits = 3 * torch.randn(300, 64, generator=torch.Generator().manual_seed(seed))
        logits = logits.round() if ties else logits
        forbidden = torch.zeros(64, dtype=torch.bool)
        forbidden[[3, 60, 61]] = True
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        shaped = distribution.policy_logits(
            logits, positions=torch.full((300,), 5), sampling=sampling, forbidden=forbidden, eos_token_id=EOS
        )
        expected = library_logits(logits.masked_fill(forbidden, -INF), sampling)
        assert torch.equal(shaped.isfinite(), expected.isfinite())
        torch.testing.assert_close(shaped.softmax(-1), expected.softmax(-1))


def test_temperature_comes_before_top_p():
    # at T = 0.5 probabilities are squared: .16 and .09 of .285 in all = 56 % and 32 %
    assert kept(P, top_p=0.55) == [1, 3]
    assert kept(P, top_p=0.55, temperature=0.5) == [1]


def test_forbidden_tokens_take_no_place_in_top_k():
    assert kept(P, forbidden=(1,), top_k=2) == [3, 4]
    # without token 1: .3 of .6 = 50 %, .15 of .6 = 25 %
    assert kept(P, forbidden=(1,), top_p=0.6) == [3, 4]


def test_kept_ids_are_not_removed_by_top_k_and_top_p():
    assert kept(P, top_k=1, keep=2) == [1, 2]
    assert kept(P, top_p=0.3, keep=0) == [0, 1]


def test_kept_ids_do_not_lift_what_is_forbidden():
    assert kept(P, top_k=1, keep=2, forbidden=(2,)) == [1]
    assert kept(P, top_k=1, keep=EOS, position=0, min_new_tokens=2) == [1]


@pytest.mark.parametrize(("position", "possible"), [(0, False), (1, False), (2, True), (9, True)])
def test_eos_is_impossible_before_the_minimal_length(position, possible):
    assert (EOS in kept(P, position=position, min_new_tokens=2)) is possible


def test_positions_are_those_of_each_row():
    shaped = distribution.policy_logits(
        torch.zeros(1, 3, 4),
        positions=torch.tensor([[0, 1, 2]]),
        sampling=Sampling(min_new_tokens=2),
        forbidden=torch.zeros(4, dtype=torch.bool),
        eos_token_id=EOS,
    )
    assert shaped[0, :, EOS].isinf().tolist() == [True, True, False]
    assert shaped[0, :, 1:].isfinite().all()


def test_temperature_divides_logits():
    shaped = distribution.policy_logits(
        torch.tensor([2.0, -1.0]),
        positions=torch.tensor(3),
        sampling=Sampling(temperature=2.0),
        forbidden=torch.zeros(2, dtype=torch.bool),
        eos_token_id=EOS,
    )
    assert shaped.tolist() == [1.0, -0.5]


ALMOST_ONE = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 1e-17, 0.5, 1 - 1e-9, ALMOST_ONE])
def test_draws_never_have_probability_zero(uniform):
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(200, 37, generator=generator)
    logits[torch.rand(200, 37, generator=generator) < 0.7] = -INF
    logits[:, 0] = logits[:, -1] = -INF
    logits[:, 5] = 0.0
    tokens = distribution.draw(logits, torch.full((200,), uniform, dtype=torch.float64))
    assert logits.softmax(-1).gather(1, tokens.unsqueeze(1)).min() > 0


def test_draw_inverts_the_distribution_function():
    # cumulative: 0.2, 0.2, 0.7, 1.0; token 1 is impossible, and an edge belongs to the token above it
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, ALMOST_ONE], dtype=torch.float64)
    assert distribution.draw(logits, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_of_the_only_possible_token():
    logits = torch.full((3, 4), -INF)
    logits[:, 2] = -50.0
    assert distribution.draw(logits, torch.tensor([0.0, 0.5, ALMOST_ONE], dtype=torch.float64)).tolist() == [
        2,
        2,
        2,
    ]


def uniforms(*image_ids: str, **changed) -> torch.Tensor:
    return distribution.rollout_uniforms(
        image_ids, **{"seed": 0, "step": 3, "num_samples": 2, "length": 4} | changed
    )


def test_uniforms_depend_on_seed_step_and_image_only():
    base = uniforms("a", "b")
    assert base.shape == (2, 2, 4)
    assert base.dtype == torch.float64
    assert (base >= 0).all()
    assert (base < 1).all()
    torch.manual_seed(99)
    assert torch.equal(base, uniforms("a", "b"))
    assert torch.equal(base[1], uniforms("x", "y", "b")[2])
    for other in (uniforms("a", "b", seed=1), uniforms("a", "b", step=4), uniforms("c", "d")):
        assert not torch.isclose(base, other).any()
    assert not torch.isclose(base[0], base[1]).any()


def test_uniforms_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    uniforms("a")
    assert torch.equal(torch.rand(1), expected)


def entropy_of(logits):
    return distribution.logprobs_and_entropy(logits, logits.argmax(-1))[1]


def test_entropy_of_a_uniform_distribution_is_log_n():
    logits = torch.zeros(3, 7)
    torch.testing.assert_close(entropy_of(logits), torch.full((3,), math.log(7)))
    logits[:, 2:] = -INF
    torch.testing.assert_close(entropy_of(logits), torch.full((3,), math.log(2)))
    logits[:, 1:] = -INF
    assert entropy_of(logits).tolist() == [0.0, 0.0, 0.0]


def test_token_logprobs_are_those_of_softmax():
    # softmax of log(1, 3, 4) is 1/8, 3/8, 4/8
    logits = torch.tensor([[1.0, 3.0, 4.0]]).log().expand(3, -1)
    expected = torch.tensor([1 / 8, 3 / 8, 4 / 8]).log()
    torch.testing.assert_close(distribution.token_logprobs(logits, torch.tensor([0, 1, 2])), expected)


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.5, "top_k": 4, "top_p": 0.8}], ids=str
)
def test_gradients_through_impossible_tokens_are_finite_and_right(sampling):
    """Against autograd of the distribution restricted to the possible tokens, without any ``-inf``."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    forbidden = torch.zeros(9, dtype=torch.bool)
    forbidden[[2, 8]] = True
    config = Sampling(min_new_tokens=1, **sampling)
    shaped = distribution.policy_logits(
        logits, positions=torch.zeros(6), sampling=config, forbidden=forbidden, eos_token_id=EOS
    )
    tokens = shaped.argmax(-1)
    value = distribution.token_logprobs(shaped, tokens).sum() + entropy_of(shaped).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()

    possible = shaped.isfinite()
    expected = torch.zeros(())
    for row in range(6):
        logprobs = (logits[row, possible[row]] / config.temperature).log_softmax(-1)
        expected = expected + logprobs.max() - (logprobs.exp() * logprobs).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert (gradient[~possible] == 0).all()


def test_logprobs_beside_the_entropy_are_those_without_it():
    logits = 5 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    logits[:, 3], logits[2, 4:] = -INF, -INF
    logits[5, :8] -= 5000.0  # probabilities of exactly zero that are no -inf
    ids = torch.tensor([0, 1, 2, 4, 5, 8])
    alone, together = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = distribution.token_logprobs(alone, ids)
    found, entropy = distribution.logprobs_and_entropy(together, ids)
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(torch.autograd.grad(entropy.sum(), together, retain_graph=True)[0]).all()
    for values, leaf in ((found, together), (expected, alone)):
        (300 * values[:4].sum() + 300 * values[5]).backward()
        assert torch.isfinite(leaf.grad).all()
    torch.testing.assert_close(together.grad, alone.grad)


def test_masked_mean():
    values, mask = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False])
    assert distribution.masked_mean(values, mask).item() == 2.0
    assert distribution.masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0.0
