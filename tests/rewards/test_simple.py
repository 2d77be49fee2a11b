"""Rewards of length, repetition and endings."""

from __future__ import annotations

import pytest

from rewards.bad_ending import BadEndingPenalty
from rewards.errors import RewardError
from rewards.length import LengthReward
from rewards.repetition import RepetitionPenalty

DEGENERATE = ["", " .", "1 .", "a 🌊 river\nnear ||| trees", "road " * 400]


def test_length_by_hand():
    """Target 4, tolerance 1: 3 to 5 words cost nothing, then a quarter per word."""
    captions = [" ".join(["word"] * n) for n in (0, 1, 2, 3, 4, 5, 6, 8, 9, 400)]
    expected = [-3 / 4, -2 / 4, -1 / 4, 0, 0, 0, -1 / 4, -3 / 4, -1, -1]
    assert LengthReward(target=4, tolerance=1)(completions=captions) == expected


def test_length_counts_words_not_punctuation():
    assert LengthReward(3)(["a road , trees .", " .", ""]) == [0, -1, -1]


@pytest.mark.parametrize(
    ("caption", "penalty"),
    [
        ("a river and a road", 0),
        ("trees trees in a park", -1 / 5),
        ("plis plis plis", -2 / 3),
        ("a lake with trees and a lake with", -3 / 8),
        ("", 0),
    ],
)
def test_repetition_by_hand(caption, penalty):
    assert RepetitionPenalty()([caption]) == pytest.approx([penalty])


def test_bad_endings():
    captions = ["a river with a", "a river with boats .", "the road is", ""]
    assert BadEndingPenalty()(completions=captions) == [-1, 0, -1, 0]


@pytest.mark.parametrize(
    "reward", [LengthReward(10, 2), RepetitionPenalty(), BadEndingPenalty()], ids=lambda r: r.__name__
)
def test_the_contract(reward):
    """One value of -1 to 0 per completion, whatever it is and whatever columns come with it."""
    columns = {
        "references": [["a road"]] * len(DEGENERATE),
        "image_id": list(DEGENERATE),
        "trainer_state": None,
    }
    values = reward(completions=DEGENERATE, **columns)
    assert len(values) == len(DEGENERATE)
    assert all(isinstance(value, float) and -1 <= value <= 0 for value in values)
    assert reward(completions=[]) == []
    assert reward.__name__.isidentifier()


@pytest.mark.parametrize("target", [0, -3, float("nan"), float("inf")])
def test_a_wrong_target_is_refused(target):
    with pytest.raises(RewardError, match="length: target"):
        LengthReward(target)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_wrong_tolerance_is_refused(tolerance):
    with pytest.raises(RewardError, match="length: tolerance"):
        LengthReward(10, tolerance)
