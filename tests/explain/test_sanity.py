"""Axioms, and the test a person would make: one object in the picture, and the map lies on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn

from scst.explain.attention import attention_rollout
from scst.explain.gradients import grad_cam, integrated_gradients
from scst.explain.shapley import segment_shapley_values
from tests.support.objects import ToyTarget, occluder_of, share_on, target_of, toy_occluder


def shapley_map(target, occluder) -> np.ndarray:
    values = segment_shapley_values(target, occluder, permutations=2, batch_size=16)[0]
    segments = occluder.segments.numpy()
    return (values / np.bincount(segments.ravel()))[segments]


def gradient_map(target, occluder) -> np.ndarray:
    return integrated_gradients(target, 0, occluder.hidden, steps=12, batch_size=12)[0]


MAPS = {"shap": shapley_map, "integrated_gradients": gradient_map}


@pytest.mark.slow
@pytest.mark.parametrize("method", MAPS)
def test_the_mass_lies_on_the_only_object(method, embedded, untrained, scenes, captions):
    """Objects cover 7 to 20 % of the picture. On twenty scenes (benchmarks/explanations.py): 0.8 and more.

    The map of random weights can lie on the object too, because it is where the picture differs from its
    blurred double: Integrated Gradients 0.38. So chance is not the only thing to be above.
    """
    shares, areas, untrained_shares = [], [], []
    for scene, caption in zip(scenes, captions, strict=True):
        target = target_of(*embedded, scene.image, caption)
        shares.append(share_on(scene.mask, MAPS[method](target, occluder_of(target, num_segments=30))))
        areas.append(scene.mask.mean())
        twin = target_of(untrained, embedded[1], scene.image, caption)
        untrained_shares.append(share_on(scene.mask, MAPS[method](twin, occluder_of(twin, num_segments=30))))
    assert max(areas) < 0.2
    assert all(share > 3 * area for share, area in zip(shares, areas, strict=True)), (shares, areas)
    assert np.mean(shares) > 0.7, shares
    assert np.mean(shares) > np.mean(untrained_shares) + 0.15, (shares, untrained_shares)


@pytest.mark.parametrize("place", [1, 2], ids=["court", "house"])
def test_the_word_that_needs_the_picture_most_rests_on_the_object(place, embedded, scenes, captions):
    """ "racket club" and "villa" of the base model's captions; the words "a photo of" gain nothing."""
    target = target_of(*embedded, scenes[place].image, captions[place])
    occluder = occluder_of(target, num_segments=30)
    values = segment_shapley_values(target, occluder, permutations=2, batch_size=16)
    gains, segments = values.sum(1), occluder.segments.numpy()
    assert abs(gains[1:4]).max() < 1, [word.text for word in target.words[:3]]
    best = 1 + int(gains[1:].argmax())
    heat = (values[best] / np.bincount(segments.ravel()))[segments]
    assert share_on(scenes[place].mask, heat) > 4 * scenes[place].mask.mean(), target.words[best - 1]


def test_attention_leads_to_the_object_more_than_chance(embedded, scenes, captions):
    """Weak evidence, and the documentation says so: two to four times the object's area."""
    for scene, caption in zip(scenes, captions, strict=True):
        rollout = attention_rollout(target_of(*embedded, scene.image, caption))
        assert share_on(scene.mask, rollout[0]) > 1.5 * scene.mask.mean()


@pytest.mark.slow
def test_integrated_gradients_are_complete(embedded, scenes, captions):
    """Their sum is the rise of the log probability, of caption and word; one step is not enough."""
    target = target_of(*embedded, scenes[2].image, captions[2])
    hidden = occluder_of(target).hidden
    for which in (0, 5):
        _, total, expected = integrated_gradients(target, which, hidden, steps=48, batch_size=16)
        assert total == pytest.approx(expected, abs=1e-2 * max(1, abs(expected)))
    _, total, expected = integrated_gradients(target, 0, hidden, steps=1, batch_size=16)
    assert abs(total - expected) > 1e-2 * max(1, abs(expected)), "the tolerance can be missed"


def test_batches_change_nothing(embedded, scenes, captions):
    target = target_of(*embedded, scenes[0].image, captions[0])
    occluder = occluder_of(target, num_segments=9)
    one, _, _ = integrated_gradients(target, 0, occluder.hidden, steps=5, batch_size=1)
    many, _, _ = integrated_gradients(target, 0, occluder.hidden, steps=5, batch_size=64)
    np.testing.assert_allclose(one, many, atol=1e-4 * np.abs(many).max())
    one = segment_shapley_values(target, occluder, permutations=2, batch_size=1)
    many = segment_shapley_values(target, occluder, permutations=2, batch_size=64)
    np.testing.assert_allclose(one, many, atol=1e-3)


def test_shapley_values_sum_to_the_rise_for_every_word(embedded, scenes, captions):
    target = target_of(*embedded, scenes[1].image, captions[1])
    occluder = occluder_of(target, num_segments=12)
    values = segment_shapley_values(target, occluder, permutations=1, batch_size=8)
    assert values.shape == (target.num_targets, occluder.num_segments)
    with torch.no_grad():
        seen, hidden = target.logprobs(torch.cat([occluder.pixels, occluder.hidden]))
    np.testing.assert_allclose(values.sum(1), (seen - hidden).numpy(), atol=1e-3)


def test_shapley_values_literally():
    """f = 4a + 2bc for the caption, d for the word: a gets 4, b and c share 2 evenly, d gets 1."""
    target = ToyTarget(lambda q: torch.stack([4 * q[:, 0] + 2 * q[:, 1] * q[:, 2], q[:, 3]], 1))
    values = segment_shapley_values(target, toy_occluder(target), permutations=400, batch_size=4)
    np.testing.assert_allclose(values[0], [4, 1, 1, 0], atol=0.15)  # 400 orders: deviation 1 / sqrt(400)
    np.testing.assert_allclose(values[1], [0, 0, 0, 1], atol=1e-6)


def test_grad_cam_literally():
    """The weight of a channel is its gradient's mean over places, the map a weighted sum over channels.

    f = q_0 + q_1 + q_2 + q_3 of the mean of 3 channels: weights 1/3, the map at a white place 3 * 1/3 = 1.
    f = q_3 - q_0: gradients cancel over places, weights are 0, and so is the map.
    """
    target = ToyTarget(lambda q: torch.stack([q.sum(1), q[:, 3] - q[:, 0]], 1))
    np.testing.assert_allclose(grad_cam(target, 0), np.ones((4, 4)), atol=1e-6)
    np.testing.assert_allclose(grad_cam(target, 1), np.zeros((4, 4)), atol=1e-6)


def test_grad_cam_of_the_model_is_the_formula(embedded, scenes, captions):
    """Selvaraju et al. 2017, eq. 1-2, written out with autograd at the projected image features."""
    target = target_of(*embedded, scenes[0].image, captions[0])
    features = []
    hook = target.image_map.register_forward_hook(lambda module, args, out: features.append(out))
    logprob = target.logprobs(target.pixels.clone().requires_grad_(True))[0, 3]
    hook.remove()
    (gradient,) = torch.autograd.grad(logprob, features[0])
    weights = gradient.mean((2, 3), keepdim=True)  # over places
    cam = (weights * features[0]).sum(1, keepdim=True).clamp(min=0)
    expected = nn.functional.interpolate(cam.double(), size=(64, 64), mode="bilinear")[0, 0].detach().numpy()
    np.testing.assert_allclose(grad_cam(target, 3), expected, atol=1e-6 * expected.max())


def test_attention_rollout_is_a_share_and_leaves_the_model_as_it_was(embedded, scenes, captions):
    target = target_of(*embedded, scenes[3].image, captions[3])
    with torch.no_grad():
        before = target.logprobs(target.pixels)
    maps = attention_rollout(target)
    with torch.no_grad():
        assert torch.equal(target.logprobs(target.pixels), before), "the attention kernel is back"
    assert maps.shape == (target.num_targets, 64, 64)
    assert (maps >= 0).all()
    assert ((maps.sum((1, 2)) > 0) & (maps.sum((1, 2)) < 1)).all(), "the rest stays with text tokens"


def test_integrated_gradients_are_captums(embedded, scenes, captions):
    """The sum over channels of what captum gives for the same function."""
    target = target_of(*embedded, scenes[0].image, captions[0])
    hidden = occluder_of(target).hidden
    expected = IntegratedGradients(lambda x: target.logprobs(x)[:, 2]).attribute(
        target.pixels, hidden, n_steps=4
    )
    found, _, _ = integrated_gradients(target, 2, hidden, steps=4, batch_size=4)
    np.testing.assert_allclose(found, expected[0].sum(0).numpy(), atol=1e-5 * np.abs(found).max())
