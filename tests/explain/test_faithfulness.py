"""Segments cover the picture, and the curves tell a good order from a bad one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scst.errors import RecipeError
from scst.explain.explanation import Settings
from scst.explain.faithfulness import FaithfulnessCurve, faithfulness_curve
from scst.explain.segments import OCCLUSIONS, Occluder, cut_into_segments, hidden_picture, segment_means
from tests.support.objects import ToyTarget, court, one_object, toy_occluder


def colours(image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def test_segments_follow_the_object():
    scene = one_object(court, 20, 40)
    segments = cut_into_segments(colours(scene.image), 40)
    assert set(np.unique(segments)) == set(range(segments.max() + 1))
    assert 20 <= segments.max() + 1 <= 60
    inside = np.bincount(segments.ravel(), weights=scene.mask.ravel()) / np.bincount(segments.ravel())
    mixed = ((inside > 0.25) & (inside < 0.75))[segments].mean()
    assert mixed < 0.05, "hardly a pixel lies in a segment that is half object, half grass"


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3)), np.ones((16, 16, 3))], ids=["tiny", "blank"])
def test_degenerate_pictures_have_segments(picture):
    segments = cut_into_segments(picture, 40)
    assert segments.shape == picture.shape[:2]
    assert segments.min() == 0


def test_what_stands_in_place_of_hidden_parts():
    picture = np.zeros((16, 16, 3))
    picture[:8, :, 0] = 1.0  # red above black
    assert np.allclose(hidden_picture(picture, "mean"), [0.5, 0, 0])
    assert np.allclose(hidden_picture(picture, "gray"), 0.5)
    assert np.allclose(hidden_picture(picture, "black"), 0)
    blurred = hidden_picture(picture, "blur")
    assert 0.9 < blurred[0, 8, 0] < 1
    assert 0.2 < blurred[7, 8, 0] < 0.8, "the edge is gone"
    assert set(OCCLUSIONS) == {"blur", "mean", "gray", "black"}
    with pytest.raises(RecipeError, match="occlusion: must be one of"):
        hidden_picture(picture, "noise")


def test_hidden_segments_show_the_other_picture_exactly():
    pixels, hidden = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    occluder = Occluder(pixels, hidden, np.kron([[0, 1], [2, 3]], np.ones((2, 2), dtype=int)))
    shown = occluder.show(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]))
    torch.testing.assert_close(shown[0], pixels[0])
    torch.testing.assert_close(shown[1], hidden[0])
    torch.testing.assert_close(shown[2, :, :2, 2:], pixels[0, :, :2, 2:])
    torch.testing.assert_close(shown[2, :, 2:], hidden[0, :, 2:])


def test_segment_means_literally():
    assert segment_means(np.array([[1.0, 3.0], [5.0, 5.0]]), np.array([[0, 0], [1, 2]])).tolist() == [2, 5, 5]


def test_areas_literally():
    """Insertion rises at once: 0.5 * (0.5 + 1) / 2 + 0.5 * 1 = 0.875; deletion is its mirror: 0.125."""
    curve = FaithfulnessCurve(np.array([0, 0.5, 1]), np.array([0.5, 0, 0]), np.array([0.5, 1, 1]))
    assert curve.insertion_area == pytest.approx(0.875)
    assert curve.deletion_area == pytest.approx(0.125)
    assert curve.faithfulness == pytest.approx(0.75)


def curve_of(order, steps=4):
    """The curve of a target whose log probability is -4 (1 - q_0) - (1 - q_1)."""
    target = ToyTarget(lambda q: torch.stack([-4 * (1 - q[:, 0]) - (1 - q[:, 1])] * 2, 1))
    importance = np.array([len(order) - order.index(segment) for segment in range(4)], dtype=float)
    return faithfulness_curve(target, toy_occluder(target), 0, importance, steps=steps, batch_size=3)


def test_curves_literally():
    curve = curve_of([0, 1, 2, 3])
    np.testing.assert_allclose(curve.shares, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(np.log(curve.deletion), [0, -4, -5, -5, -5], atol=1e-6)
    np.testing.assert_allclose(np.log(curve.insertion), [-5, -1, 0, 0, 0], atol=1e-6)


def test_the_right_order_is_the_best_and_a_random_one_is_worth_nothing():
    values = {order: curve_of(list(order)).faithfulness for order in itertools.permutations(range(4))}
    best = max(values, key=values.get)
    assert best[:2] == (0, 1)
    assert values[(3, 2, 1, 0)] == pytest.approx(-values[(0, 1, 2, 3)]), (
        "the reverse order is as bad as it is good"
    )
    assert np.mean(list(values.values())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 99])
def test_few_and_many_points(steps):
    curve = curve_of([0, 1, 2, 3], steps=steps)
    assert curve.shares[0] == 0
    assert curve.shares[-1] == 1
    assert len(curve.shares) == min(steps, 4) + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ["shap", "lime"]}, "methods: expected some of shap, integrated_gradients"),
        ({"methods": []}, "methods: expected some of"),
        ({"num_segments": 1}, "num_segments: must be at least 2, got 1"),
        ({"ig_steps": 0}, "ig_steps: must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(RecipeError, match=message):
        Settings(**values)
