"""BLEU: equal to pycocoevalcap per caption and for corpora; smoothing by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from rewards.bleu import BleuReward
from rewards.errors import RewardError
from rewards.scorers.bleu import bleu_statistics, corpus_bleu_from_sums
from rewards.scorers.tokenizer import tokenize

DEGENERATE = ["", " .", "1 .", "a road", "a 🌊 river\nnear ||| trees", "road " * 400]


def tokens(texts):
    return [" ".join(tokenize(text)) for text in texts]


def pycocoevalcap_bleu(candidates, references):
    """Corpus BLEU-1 to 4, and those of every caption."""
    scorer = BleuScorer(n=4)
    for candidate, group in zip(candidates, references, strict=True):
        scorer += (candidate, group)
    return scorer.compute_score(option="closest")


def assert_equal_to_pycocoevalcap(candidates, references):
    corpus, per_caption = pycocoevalcap_bleu(candidates, references)
    rows = bleu_statistics(candidates, references)
    for order in (1, 2, 3, 4):
        columns = [0, 1, *range(2, 2 + order), *range(6, 6 + order)]
        ours = corpus_bleu_from_sums(rows[:, columns])
        np.testing.assert_allclose(ours, per_caption[order - 1], rtol=0, atol=1e-12)
        value = corpus_bleu_from_sums(rows[:, columns].sum(0, keepdims=True))[0]
        assert value == pytest.approx(corpus[order - 1], abs=1e-12)
        np.testing.assert_array_equal(bleu_statistics(candidates, references, order), rows[:, columns])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_equal_to_pycocoevalcap_on_real_captions(shared_data, count):
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [tokens(json.loads(line)["captions"]) for line in lines]
    assert len(groups) > 1000
    others = [groups[i - 1][0] if i % 3 == 0 else group[0] for i, group in enumerate(groups)]
    assert_equal_to_pycocoevalcap(others, [group[1 : 1 + count] for group in groups])


def test_equal_to_pycocoevalcap_on_degenerate_captions():
    pairs = [(candidate, [reference]) for candidate in DEGENERATE for reference in DEGENERATE]
    pairs += [("a road", ["a road"] * 5), ("a road", ["", "the road"])]
    assert_equal_to_pycocoevalcap(tokens([c for c, _ in pairs]), [tokens(group) for _, group in pairs])


def test_statistics_by_hand():
    """ "the" stands twice in the caption, once in each reference: clipped to 1. Of lengths 4 and 6, 4 is as
    close to 5 as 6 is: the shorter one counts."""
    rows = bleu_statistics(["the road near the lake"], [["the big long road", "a b c d e lake"]], order=2)
    assert rows.tolist() == [[5, 4, 1 + 1 + 1, 0, 5, 4]]


def test_bleu_by_hand():
    """ "a road near" and "a road near trees": all n-grams match, the brevity penalty is exp(1 - 4/3). BLEU-4
    has no 4-gram to guess: 0/0 counts as (tiny / small) = 1e-6 under the fourth root."""
    three, four = (BleuReward(order)(["A road near ."], [["a road near trees"]])[0] for order in (3, 4))
    assert three == pytest.approx(math.exp(1 - 4 / 3), abs=1e-8)
    assert four == pytest.approx(1e-6**0.25 * math.exp(1 - 4 / 3), rel=1e-6)


def test_a_caption_scored_against_itself_reaches_the_maximum():
    text = "many planes are parked near a terminal"
    for smooth in (False, True):
        assert BleuReward(4, smooth)([text], [[text]]) == pytest.approx([1.0], abs=1e-8)


def test_no_shared_ngram_of_the_highest_order_is_nearly_zero_without_smoothing():
    caption, references = "a road near trees", [["a road near houses"]]
    assert BleuReward(4)([caption], references)[0] < 1e-3
    # Matches and guesses, one more above order 1: 3/4, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1).
    expected = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert BleuReward(4, smooth=True)([caption], references)[0] == pytest.approx(expected, abs=1e-8)


def test_the_reward_is_pycocoevalcaps_value_on_raw_text():
    captions = ["Two planes, parked.", *DEGENERATE]
    references = [["two planes are parked near a building ."]] * len(captions)
    _, expected = pycocoevalcap_bleu(tokens(captions), [tokens(group) for group in references])
    assert BleuReward()(completions=captions, references=references, image_id=["x"] * len(captions)) == (
        pytest.approx(expected[3], abs=1e-12)
    )
    assert BleuReward()(completions=[], references=[]) == []
    assert BleuReward()(["", " ."], [["a road"], [""]]) == [0.0, 0.0]


def test_wrong_arguments_are_refused():
    for order in (0, 5, 2.5):
        with pytest.raises(RewardError, match="order must be 1 to 4"):
            BleuReward(order)
    with pytest.raises(RewardError, match="references"):
        BleuReward()(["a road"], [[]])
    with pytest.raises(RewardError):
        bleu_statistics(["a", "b"], [["a"]])
