"""Distinct n-grams and novelty."""

from __future__ import annotations

import json

import pytest

from rewards.errors import RewardError
from rewards.scorers.diversity import TrainingText, caption_ngrams


def test_ngrams_by_hand():
    assert caption_ngrams("A road, a road .", 2) == [("a", "road"), ("road", "a"), ("a", "road")]
    assert caption_ngrams("a road", 3) == caption_ngrams(" .", 1) == []
    with pytest.raises(RewardError, match="n=0"):
        caption_ngrams("a road", 0)


def test_novelty_by_hand():
    training = TrainingText.from_captions(["a road near a lake .", "many trees"])
    captions = ["A road near a lake!", "a lake near many roads", "trees", ""]
    assert training.is_novel(captions) == [False, True, True, True]
    assert training.novel_word_counts(captions).tolist() == [[0, 5], [1, 5], [0, 1], [0, 0]]


def test_training_captions_are_not_novel(shared_data):
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line)["captions"] for line in lines]
    training = TrainingText.from_captions(caption for group in groups for caption in group)
    captions = [group[0] for group in groups]
    assert not any(training.is_novel(captions))
    assert training.novel_word_counts(captions)[:, 0].sum() == 0
    backwards = [" ".join(reversed(caption.split())) for caption in captions]
    assert training.novel_word_counts(backwards)[:, 0].sum() == 0
    assert sum(training.is_novel(backwards)) > 0.99 * len(backwards)


def test_nothing_to_compare():
    training = TrainingText.from_captions([""])
    assert training.is_novel([]) == []
    assert training.novel_word_counts([]).shape == (0, 2)
    assert training.novel_word_counts(["a road"]).tolist() == [[2, 2]]
    assert not training.is_novel([" ."])[0], "an empty caption equals an empty reference"
    with pytest.raises(RewardError, match="got none"):
        TrainingText.from_captions([])
