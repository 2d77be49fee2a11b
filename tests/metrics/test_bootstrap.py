"""Scores against pycocoevalcap, degenerate input, intervals, signatures, paired comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.errors import DataError, RecipeError
from scst.metrics.bootstrap import (
    check_metrics,
    metrics_json,
    resampled_values,
    score_captions,
)
from scst.metrics.corpus import Corpus, MetricSettings, Scores
from scst.metrics.signatures import signature
from scst.metrics.suite import METRICS, _mean
from tests.support.golden import CAPTIONS, EXPECTED, REFERENCES, TRAINED_ON

TEXT = [
    name
    for name, metric in METRICS.items()
    if name not in ("meteor", "spice", "bertscore", "sentence_similarity") and not metric.needs
]
QUALITY = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]


def scored(captions, references, metrics=TEXT, **settings):
    return score_captions(Corpus(captions, references, settings=TRAINED_ON), metrics, **settings)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_values(golden_results, name):
    value, per_caption = EXPECTED[name]
    assert golden_results[name].value == pytest.approx(value, abs=1e-12)
    assert golden_results[name].per_caption == pytest.approx(per_caption, abs=1e-12)


def test_values_that_can_be_counted_by_hand():
    captions = ["a road and a road", "Two trees.", "a road and a road", "", "a lake with a"]
    results = scored(captions, [["a road"]] * 5)
    expected = {
        "length": (5 + 2 + 5 + 0 + 4) / 5,
        "repetition_rate": 0.0,
        "bad_ending_rate": 1 / 5,
        "empty_rate": 1 / 5,
        "vocabulary": 7,  # a road and two trees lake with
        "distinct_1": 7 / 16,
        "distinct_2": 7 / 12,  # a-road road-and and-a | two-trees | a-lake lake-with with-a
        "distinct_captions": 4 / 5,
        "novel_words": 5 / 16,  # and, and, two, trees, lake ... of which `with` too
        "novel_captions": 1.0,
    }
    expected["novel_words"] = 6 / 16
    assert {name: results[name].value for name in expected} == pytest.approx(expected, abs=1e-12)


def test_caption_equal_to_all_its_references_reaches_the_maximum():
    captions = ["two planes are parked near a terminal", "a wide river flows through the green forest"]
    captions += ["many tennis courts lie beside some houses", "six white storage tanks stand in the desert"]
    results = scored(captions, [[caption] * 5 for caption in captions])
    # Cosine 1 for each n-gram order, length difference 0: CIDEr-D = 10 * mean(1, 1, 1, 1).
    for name in ("cider_d", "cider"):
        assert results[name].per_caption == pytest.approx([10.0] * 4, abs=1e-9)
    for name in ("bleu_1", "bleu_4", "rouge_l", "entity_recall", "count_accuracy"):
        assert results[name].value == pytest.approx(1.0, abs=1e-6)


def test_meteor_is_one_for_an_identical_caption_and_zero_for_an_empty_one(golden_results):
    assert golden_results["meteor"].per_caption[0] == 1.0
    assert golden_results["meteor"].per_caption[-1] == 0.0


def test_empty_captions_score_zero_and_hurt_nobody_else():
    spoiled = scored(["", *CAPTIONS[1:]], REFERENCES, QUALITY)
    whole = scored(CAPTIONS, REFERENCES, QUALITY)
    for name in QUALITY:
        assert spoiled[name].per_caption[0] == pytest.approx(0, abs=1e-6)
        assert spoiled[name].per_caption[1:] == pytest.approx(whole[name].per_caption[1:])


DEGENERATE = ["", " .", "1 .", "🌊", "a" * 300, "river " * 400, "a\nb", "||| <eos> </s>", "\udc80", "\x00"]


@pytest.mark.parametrize(
    "references", [["a road"], ["a road ."] * 5, [" ."], ["", "!"], ["🌊", "river " * 400]]
)
def test_degenerate_captions_give_finite_numbers(references):
    results = scored(DEGENERATE, [references] * len(DEGENERATE), bootstrap_samples=20)
    for name, result in results.items():
        judged = [value for value in result.per_caption if value is not None]
        assert np.isfinite(judged).all(), name
        assert np.isfinite(result.value) or not judged, name
        assert np.isfinite(result.ci95).all() or (result.per_caption and len(judged) < 2), name


def test_only_empty_references():
    results = scored(["a road", ""], [[" ."], ["", "!"]], QUALITY)
    assert all(result.value == pytest.approx(0, abs=1e-6) for result in results.values())


def test_what_cannot_be_judged_is_left_out():
    # The first image's references agree on no count: only the second caption is judged.
    result = scored(["two planes", "three planes"], [["some road"], ["two planes"]], ["count_accuracy"])
    assert result["count_accuracy"].per_caption == [None, 0.0]
    assert result["count_accuracy"].value == 0.0
    assert result["count_accuracy"].judged == 1
    assert np.isnan(result["count_accuracy"].ci95).all(), "one judged image has no interval"
    nothing = scored(["a road"], [[" ."]], ["count_accuracy"])
    assert np.isnan(nothing["count_accuracy"].value)
    assert metrics_json(nothing)["count_accuracy"]["value"] is None
    assert metrics_json(nothing)["count_accuracy"]["judged"] == 0
    json.dumps(metrics_json(nothing), allow_nan=False)


def test_one_image_and_one_reference():
    results = scored(["a road 😀"], [["a road"]])
    assert results["cider_d"].value == 0  # log(1 image) = 0: every n-gram is in every document
    assert results["bleu_2"].value == pytest.approx(1.0, abs=1e-6)  # the tokeniser drops the emoji
    assert results["bleu_2"].signature.startswith("BLEU-2|refs:1|")


@pytest.mark.parametrize("name", TEXT)
def test_order_of_images_and_references_changes_nothing(name):
    order = [3, 1, 5, 0, 4, 2]
    plain = scored(CAPTIONS, REFERENCES, [name], bootstrap_samples=2)[name]
    turned = scored(
        [CAPTIONS[i] for i in order], [REFERENCES[i][::-1] for i in order], [name], bootstrap_samples=2
    )[name]
    assert turned.value == pytest.approx(plain.value, abs=1e-12)
    assert turned.signature == plain.signature
    if plain.per_caption:
        expected = [plain.per_caption[i] for i in order]
        assert turned.per_caption == [v if v is None else pytest.approx(v, abs=1e-12) for v in expected]


def test_intervals_contain_the_value_and_repeat(golden_results):
    for name in QUALITY:
        low, high = golden_results[name].ci95
        assert low < golden_results[name].value < high
    again = scored(CAPTIONS, REFERENCES, QUALITY)
    assert all(again[name] == golden_results[name] for name in QUALITY)
    other = scored(CAPTIONS, REFERENCES, ["cider_d"], seed=1)["cider_d"]
    assert other.ci95 != golden_results["cider_d"].ci95


@pytest.mark.parametrize("name", ["distinct_1", "distinct_captions", "vocabulary"])
def test_intervals_of_counts_of_distinct_things_contain_the_value(name):
    """A resample holds fewer distinct captions than the corpus: plain percentiles would all lie below it."""
    result = scored([f"road {i} with trees" for i in range(50)], [["a"]] * 50, [name])[name]
    assert result.ci95[0] <= result.value <= result.ci95[1]


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    column = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    values = resampled_values(_mean(column.tolist(), ""), 2000, 1000, 0)
    assert values.mean() == pytest.approx(column.mean(), abs=0.01)
    # standard error of the mean, with 1000 resamples good to about 5 %
    assert values.std() == pytest.approx(column.std() / np.sqrt(2000), rel=0.1)


@pytest.mark.parametrize("name", TEXT)
def test_a_resample_is_worth_what_its_captions_are_worth(name):
    """The value of drawn images is the metric of a corpus of just those captions (CIDEr: fixed documents)."""
    table = DocumentFrequencies.from_references(REFERENCES, eos="omitted", split="corpus")
    settings = MetricSettings(frequencies=table, training_captions=TRAINED_ON.training_captions)
    drawn = np.array([2, 0, 1, 3, 0, 1])
    picked = np.repeat(np.arange(6), drawn)
    whole = METRICS[name].score(Corpus(CAPTIONS, REFERENCES, settings=settings))
    part = METRICS[name].score(
        Corpus([CAPTIONS[i] for i in picked], [REFERENCES[i] for i in picked], settings=settings)
    )
    assert whole.resampled(drawn[None])[0] == pytest.approx(part.value, abs=1e-12)


def test_signatures(golden_results):
    assert golden_results["bleu_4"].signature == "BLEU-4|refs:2|tok:ptb|smooth:none|v:0.2.0"
    head, df, tail = golden_results["cider_d"].signature.partition("df:corpus,image,")
    assert head == "CIDEr-D|refs:2|"
    assert df
    assert tail[6:] == "|tok:ptb|eos:no|sigma:6|n:4|v:0.2.0"
    int(tail[:6], 16)
    mixed = scored(["a", "b"], [["a"], ["b", "c", "d"]], ["rouge_l"])
    assert mixed["rouge_l"].signature == "ROUGE-L|refs:1-3|tok:ptb|beta:1.2|v:0.2.0"
    titles = [metric.title for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)


def test_document_frequencies_of_the_references_or_of_a_table(tmp_path):
    def cider(**settings):
        corpus = Corpus(CAPTIONS, REFERENCES, settings=MetricSettings(**settings))
        return score_captions(corpus, ["cider_d"], bootstrap_samples=2)["cider_d"]

    table = DocumentFrequencies.from_references([*REFERENCES, ["a road"]] * 3, eos="omitted")
    table.save(tmp_path / "df.json")
    own, given = cider(), cider(frequencies=str(tmp_path / "df.json"))
    assert f"df:train,image,{table.fingerprint[:6]}" in given.signature
    assert given.value != own.value
    assert cider(frequencies=table) == given


def test_a_table_for_rewards_is_refused_for_reported_metrics(tmp_path):
    DocumentFrequencies.from_references(REFERENCES, eos="emitted").save(tmp_path / "df.json")
    for path, message in ((tmp_path / "df.json", "--eos omitted"), (tmp_path / "none.json", "No such file")):
        with pytest.raises(RecipeError, match=message):
            check_metrics(["cider_d"], MetricSettings(frequencies=str(path)))


def test_metrics_json(golden_results):
    summary = json.loads(json.dumps(metrics_json(golden_results)))
    assert list(summary) == list(EXPECTED)
    for entry in summary.values():
        assert list(entry) == ["value", "ci95", "judged", "signature"]
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]


def test_wrong_input_is_refused_with_what_came():
    with pytest.raises(RecipeError, match=r"unknown \['ciderr'\].*bleu_1.*cider_d"):
        scored(["a"], [["a"]], ["ciderr"])
    with pytest.raises(DataError, match="at least one"):
        scored([], [], ["bleu_1"])
    with pytest.raises(DataError, match="2 captions, but references for 1"):
        scored(["a", "b"], [["a"]], ["bleu_1"])
    for group in ([], "a road", [None]):
        with pytest.raises(DataError, match="caption 0: expected text and a list of texts"):
            scored(["a"], [group], ["bleu_1"])


def test_a_metric_that_lacks_something_is_refused_before_any_work():
    cases = {
        "clipscore": "clipscore needs images",
        "truncation_rate": "truncation_rate needs ended_by_eos",
        "novel_words": "--training_captions FILE",
        "bertscore": "no model given",
        "spice": "SPICE",
    }
    for name, message in cases.items():
        with pytest.raises(RecipeError, match=message):
            score_captions(Corpus(["a"], [["a"]]), [name])
    with pytest.raises(RecipeError, match="clipscore: no model given; give"):
        check_metrics(["clipscore"], columns=("images",))


def test_a_signature_without_details():
    assert signature(METRICS["length"], Scores(0, [], [], lambda rows: np.asarray, "")) == "words|v:0.2.0"
