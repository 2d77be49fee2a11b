"""One caption of an image's own: by position, length, chance or score."""

import pytest
from datasets import Dataset

from scst.data.preparation.caption_scorers import consensus_scores
from scst.data.preparation.selection import (
    SELECTIONS,
    choose_captions,
    consensus_first,
    sibling_scores,
    siblings,
    with_chosen_first,
)
from scst.errors import RecipeError
from tests.support.rows import CAPTIONS

BRIDGES = ["a bridge over a river", "two cars drive", "a bridge over the river"]


def test_positions_by_rule():
    assert choose_captions([CAPTIONS], ["a"], "first") == [0]
    assert choose_captions([CAPTIONS], ["a"], "longest") == [1]
    assert choose_captions([list("abcde")], ["img_0"], "random", seed=1) == choose_captions(
        [list("abcde")], ["img_0"], "random", seed=1
    )
    assert len(set(choose_captions([list("abcde")] * 50, map(str, range(50)), "random"))) == 5


def test_highest_score_wins_and_ties_are_drawn():
    assert choose_captions([CAPTIONS], ["a"], "clipscore", scores=[[0.1, 0.3, 0.2]]) == [1]
    tied = choose_captions(
        [["x", "y", "z"]] * 300, map(str, range(300)), "clipscore", scores=[[1, 0, 1]] * 300
    )
    # 300 draws of two: mean 150, standard deviation sqrt(300 / 4) = 8.7
    assert set(tied) == {0, 2}
    assert 110 < tied.count(0) < 190


def test_consensus_is_the_caption_the_others_agree_with():
    # only the two captions about the bridge share words, so the odd one scores 0 against its siblings
    scores = sibling_scores([BRIDGES], consensus_scores([BRIDGES, ["a"], ["b"]], "train"))
    assert scores[0][1] == 0 < min(scores[0][0], scores[0][2])
    rows = Dataset.from_dict({"references": [BRIDGES[1:], BRIDGES], "image_id": ["one", "two"]})
    first = consensus_first(rows, consensus_scores([*rows["references"], ["a"]], "train"))["references"][:]
    assert first[1][0] != BRIDGES[1]
    assert [sorted(group) for group in first] == [sorted(group) for group in rows["references"][:]]


def test_consensus_is_the_mean_score_against_single_siblings():
    """CIDEr-D is a mean over references, so the score against all siblings is that of the pairs."""
    score = consensus_scores([BRIDGES, CAPTIONS, ["a"]], "train")
    pairs = score([BRIDGES[0]] * 2, [[BRIDGES[1]], [BRIDGES[2]]])
    assert sibling_scores([BRIDGES], score)[0][0] == pytest.approx(sum(pairs) / 2)


def test_a_lone_caption_has_no_siblings():
    asked = []
    assert sibling_scores([["alone"], ["also alone"]], lambda *a: asked.append(a) or []) == [[0.0], [0.0]]
    assert choose_captions([["alone"]], ["a"], "consensus", scores=[[0.0]]) == [0]


def test_equal_captions():
    assert list(siblings(["a", "a"])) == [["a"], ["a"]]
    assert with_chosen_first(["a", "b", "b"], 2) == ["b", "a", "b"]


def test_unknown_selection_and_missing_scores():
    with pytest.raises(RecipeError, match="unknown caption selection 'best'; known are all, first"):
        choose_captions([["a"]], ["a"], "best")
    for selection in SELECTIONS[-2:]:
        with pytest.raises(RecipeError, match="wants a score"):
            choose_captions([["a"]], ["a"], selection)
