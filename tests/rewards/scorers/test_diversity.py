"""Distinct n-grams and novelty."""

from __future__ import annotations

import json

import pytest

from rewards.errors import RewardError
from rewards.scorers.diversity import TrainingText, caption_ngrams, distinct_n

DEGENERATE = ["", " .", "1 .", "a 🌊 river\nnear ||| trees", "road " * 400]


def test_distinct_n_by_hand():
    """a road / a road near a lake: 7 words, 4 of them distinct; 5 bigrams (a road twice), 4 distinct."""
    captions = ["A road .", "a road near a lake"]
    assert distinct_n(captions, 1) == 4 / 7
    assert distinct_n(captions, 2) == 4 / 5
    assert distinct_n(captions, 5) == 1
    assert distinct_n(captions, 6) == 0


@pytest.mark.parametrize("n", [1, 2, 4])
def test_distinct_n_of_copies_is_divided_by_their_number(n):
    caption = "two planes are parked near a building"
    assert distinct_n([caption], n) == 1
    assert distinct_n([caption] * 5, n) == 1 / 5


def test_nothing_is_not_divided():
    assert distinct_n([], 1) == distinct_n(["", " ."], 1) == 0
    assert caption_ngrams("a road", 3) == []
    with pytest.raises(RewardError, match="n=0"):
        distinct_n(["a road"], 0)


def test_distinct_n_of_degenerate_captions():
    """1 / a river near | | | trees / road x 400: 1 + 7 + 400 words, 1 + 5 + 1 distinct."""
    assert distinct_n(DEGENERATE, 1) == 7 / 408


def test_novelty_by_hand():
    training = TrainingText.from_captions(["a road near a lake .", "many trees"])
    captions = ["A road near a lake!", "a lake near many roads", "trees", ""]
    assert training.is_novel(captions) == [False, True, True, True]
    assert training.novel_caption_share(captions) == 3 / 4
    assert training.novel_word_counts(captions).tolist() == [[0, 5], [1, 5], [0, 1], [0, 0]]
    assert training.novel_word_share(captions) == 1 / 11


def test_training_captions_are_not_novel(shared_data):
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line)["captions"] for line in lines]
    training = TrainingText.from_captions(caption for group in groups for caption in group)
    captions = [group[0] for group in groups]
    assert training.novel_caption_share(captions) == training.novel_word_share(captions) == 0
    backwards = [" ".join(reversed(caption.split())) for caption in captions]
    assert training.novel_word_share(backwards) == 0
    assert training.novel_caption_share(backwards) > 0.99


def test_nothing_to_compare():
    training = TrainingText.from_captions([""])
    assert training.novel_caption_share([]) == training.novel_word_share([]) == 0
    assert training.novel_word_counts([]).shape == (0, 2)
    assert training.novel_word_share(["a road"]) == 1
    assert not training.is_novel([" ."])[0], "an empty caption equals an empty reference"
    with pytest.raises(RewardError, match="got none"):
        TrainingText.from_captions([])
