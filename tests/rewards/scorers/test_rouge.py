"""ROUGE-L: equal to pycocoevalcap, but for two empty texts."""

from __future__ import annotations

import json
import random

import pytest
from pycocoevalcap.rouge.rouge import Rouge

from rewards.errors import RewardError
from rewards.rouge_l import RougeLReward
from rewards.scorers.rouge import BETA, rouge_l_scores
from rewards.scorers.tokenizer import tokenize


def tokens(texts):
    return [" ".join(tokenize(text)) for text in texts]


def assert_equal_to_pycocoevalcap(captions, references):
    expected = [Rouge().calc_score([c], r) for c, r in zip(captions, references, strict=True)]
    assert rouge_l_scores(captions, references) == pytest.approx(expected, abs=1e-12)
    return expected


def test_equal_to_pycocoevalcap_on_real_captions(shared_data):
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [tokens(json.loads(line)["captions"]) for line in lines]
    assert len(groups) > 1000
    captions = [groups[i - 1][0] if i % 3 == 0 else group[0] for i, group in enumerate(groups)]
    expected = assert_equal_to_pycocoevalcap(captions, [group[1:] for group in groups])
    assert len(set(expected)) > 200, "the scores are too much alike to tell anything"


def test_equal_to_pycocoevalcap_on_random_words():
    """Few words, so that each stands in many places: the hard case of the longest common subsequence."""
    rng = random.Random(0)

    def text(longest):
        return " ".join(rng.choices("abcd", k=rng.randrange(1, longest)))

    captions = [text(90) for _ in range(100)]
    assert_equal_to_pycocoevalcap(
        captions, [[text(90) for _ in range(rng.randrange(1, 4))] for _ in captions]
    )


@pytest.mark.parametrize(
    "caption", ["road " * 400, "a 🌊 river\nnear ||| trees", "1 ."], ids=["long", "odd", "one"]
)
def test_equal_to_pycocoevalcap_on_degenerate_captions(caption):
    references = [["a road near trees"], ["1"], ["", "a river"], ["many trees"] * 5]
    assert_equal_to_pycocoevalcap(tokens([caption] * 4), references)


def test_empty_texts_score_nothing():
    assert rouge_l_scores(["", "", "a road"], [[""], ["a road"], [""]]) == [0.0, 0.0, 0.0]
    assert Rouge().calc_score([""], [""]) == 1.0, "then this needs no rule of its own any more"
    assert rouge_l_scores([], []) == []


def test_by_hand():
    """ "a b d" is common to "a x b d" (precision 3/4) and "a b c d e" (recall 3/5)."""
    expected = (1 + BETA**2) * (3 / 4) * (3 / 5) / (3 / 5 + BETA**2 * 3 / 4)
    assert rouge_l_scores(["a x b d"], [["a b c d e"]]) == pytest.approx([expected], abs=1e-15)


def test_a_caption_scored_against_itself_reaches_the_maximum():
    assert RougeLReward()(["Two planes, parked ."], [["a lake", "two planes parked"]]) == pytest.approx([1.0])


def test_the_reward_tokenises_and_takes_any_column():
    captions, references = ["A Road near trees!", " ."], [["a road, and trees"], ["a road"]]
    values = RougeLReward()(
        completions=captions, references=references, image_id=["x", "y"], prompts=["", ""]
    )
    assert values == rouge_l_scores(tokens(captions), [tokens(group) for group in references])
    assert values[0] > 0.5
    assert values[1] == 0


def test_missing_references_are_refused():
    for score in (RougeLReward(), rouge_l_scores):
        with pytest.raises(RewardError, match="references"):
            score(["a road"], [[]])
        with pytest.raises(RewardError):
            score(["a road", "a lake"], [["a road"]])
