"""The reward on literal captions, with the sum above the assertion."""

import pytest
from scst_reward_vocabulary import VocabularyReward

REFERENCES = [
    ["A river goes by.", "a wide river"],
    ["A river near a road .", "a rivr"],
    [" .", "tennis-courts near a road"],
]


@pytest.fixture
def reward():
    """Words that at least two of three images have, and one more."""
    reward = VocabularyReward(also=["Airport"])
    reward.setup({"references": REFERENCES})
    return reward


def test_literally(reward):
    """Shares counted by hand."""
    # words of two images or more: a, river, near, road; and airport
    assert reward.words == {"a", "river", "near", "road", "airport"}
    # 3 of 4; all 5 of 5; 0 of 1 (the tennis courts are on one image only)
    assert reward(completions=["A river goes near.", "a road near a airport", "tennis-courts"]) == [
        0.75,
        1,
        0,
    ]


def test_no_opinion_without_words(reward):
    """None is no opinion, and not a bad one."""
    assert reward(completions=["", " .", "🙂", "a\nroad|||"]) == [None, None, None, 1.0]


def test_logs_what_is_outside(reward):
    """One number per call, through the trainer's own log."""
    logged = []
    reward(completions=["rivr road", "rivr lake"], log_metric=lambda *metric: logged.append(metric))
    assert logged == [("words_outside_vocabulary", 2)]


def test_wrong_use():
    """Errors say what was expected and what came."""
    with pytest.raises(ValueError, match="min_images must be at least 1, got 0"):
        VocabularyReward(min_images=0)
    with pytest.raises(RuntimeError, match="call setup"):
        VocabularyReward()(completions=["a river"])
