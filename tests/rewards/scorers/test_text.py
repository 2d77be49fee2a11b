"""Counts of what goes wrong in caption text."""

from __future__ import annotations

import json

import pytest

from rewards.registry import build_rewards
from rewards.scorers.text import (
    bad_ending_rate,
    caption_statistics,
    caption_texts,
    collapse_blanks,
    distinct_share,
    has_bad_ending,
    has_repetition,
    mean_length,
    repeated_share,
    words,
)
from scst.metrics.bootstrap import metric_scores
from scst.metrics.corpus import Corpus


@pytest.mark.parametrize(
    ("caption", "bad"),
    [
        ("a river with a", True),
        ("many trees and .", True),
        ("a river with a |", True),  # nothing is gained by a symbol at the end
        ("a river (with)", True),
        ("a road near the", True),
        ("The road is", True),
        ("a river with boats", False),
        ("houses with trees beside .", False),
        ("", False),
        (" .", False),
    ],
)
def test_bad_endings(caption, bad):
    assert has_bad_ending(caption) is bad


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("trees trees in a park", True),
        ("plis plis plis", True),
        ("a river with trees and a river with trees", True),
        ("a river and a road", False),
        ("", False),
    ],
)
def test_repetition(caption, repeats):
    assert has_repetition(caption) is repeats


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a river and a road", 0),
        ("trees trees in a park", 1 / 5),
        ("plis plis plis plis", 3 / 4),
        (
            "a river with trees and a river with trees",
            4 / 9,
        ),  # the second "a river with", then "river with trees"
        (
            "to and to and to and",
            4 / 6,
        ),  # overlapping: "to and to" from the third word, "and to and" after it
        ("", 0),
    ],
)
def test_share_of_repeated_words(caption, share):
    assert repeated_share(caption) == pytest.approx(share)
    assert has_repetition(caption) is (share > 0)


@pytest.mark.parametrize("caption", ["", " .", "1 .", "||| .", "a 🌊 river\nnear ||| trees", "road " * 400])
def test_degenerate_captions_are_counted(caption):
    assert 0 <= repeated_share(caption) <= 1
    assert has_bad_ending(caption) is False
    statistics = caption_statistics([caption])
    assert statistics["mean_length"] == len(words(caption))
    assert statistics["empty_rate"] == (not words(caption))


def test_words_without_the_punctuation_around_them():
    assert words("A T-shaped road, (green) trees .") == ("a", "t-shaped", "road", "green", "trees")
    assert words("||| .\n") == words("( ) [ ] {") == words("🌊") == ()
    assert words("it's a 3-storey house") == ("it", "'s", "a", "3-storey", "house")


def test_blanks_are_collapsed():
    assert collapse_blanks("  a  road\t near\n\u00a0trees . ") == "a road near trees ."
    assert collapse_blanks(" \n") == ""


@pytest.mark.parametrize("captions", [["a road", "| |", "( )", ""], ["🌊", "1 .", "<eos>"], ["it's a lake."]])
def test_a_training_log_and_a_report_agree(captions):
    """On shares of empty captions, lengths and vocabularies, whatever the captions are."""
    names = {"empty_rate": "empty_rate", "mean_length": "length", "vocabulary_size": "vocabulary"}
    names |= {"distinct_share": "distinct_captions", "bad_ending_rate": "bad_ending_rate"}
    corpus = Corpus(captions, [["a road"]] * len(captions))
    log, report = caption_statistics(captions), metric_scores(corpus, list(names.values()))
    assert {name: report[names[name]].value for name in names} == {name: log[name] for name in names}


def test_statistics():
    captions = ["a road", "A road .", "a bridge over the", ""]
    assert caption_statistics(captions) == {
        "bad_ending_rate": 1 / 4,
        "repetition_rate": 0.0,
        "empty_rate": 1 / 4,
        "mean_length": (2 + 2 + 4 + 0) / 4,
        "distinct_share": 3 / 4,
        "vocabulary_size": 5,
    }
    assert set(caption_statistics([]).values()) == {0}
    assert mean_length([]) == distinct_share([]) == 0


@pytest.mark.parametrize("name", ["rsicd_val", "nwpu_val", "ucm_train", "sydney_train"])
def test_human_captions_hardly_end_badly(shared_data, name):
    lines = (shared_data / "captions" / f"{name}.jsonl").read_text().splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    assert bad_ending_rate(captions) < 0.01


def test_conversational_completions_are_read_as_captions():
    """TRL passes messages where prompts are conversations, with plain content or in parts."""
    plain = ["a river", "two roads"]
    messages = [[{"role": "assistant", "content": text}] for text in plain]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in plain]
    assert caption_texts(plain) == caption_texts(messages) == caption_texts(parts) == plain


@pytest.mark.parametrize("name", ["cider_d", "bleu", "rouge_l", "entity_recall", "repetition", "bad_ending"])
def test_rewards_take_conversational_completions(name):
    (reward,) = build_rewards([name])
    references = [["a river in a forest", "a river"], ["two roads", "a road"]]
    if hasattr(reward.function, "setup"):
        reward.function.setup({"references": references})
    messages = [[{"role": "assistant", "content": text}] for text in ("a river a river", "two roads with")]
    plain = reward.function(completions=["a river a river", "two roads with"], references=references)
    assert reward.function(completions=messages, references=references) == plain
