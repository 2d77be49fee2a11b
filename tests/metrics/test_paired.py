"""The paired comparison of two systems: differences, intervals, levels of the tests, nothing to compare."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from scst.errors import DataError
from scst.evaluation.score_files import differences_table
from scst.metrics.bootstrap import resampled_values, score_captions
from scst.metrics.corpus import Corpus, Scores
from scst.metrics.paired import (
    bootstrap_p_value,
    compare_captions,
    comparison_json,
    paired_differences,
    permutation_p_value,
)
from scst.metrics.suite import METRICS, _mean
from tests.support.golden import CAPTIONS, EXPECTED, REFERENCES, TRAINED_ON

QUALITY = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]


def test_equal_systems_do_not_differ():
    corpus = Corpus(CAPTIONS, REFERENCES)
    for d in compare_captions(corpus, corpus, QUALITY).values():
        assert d.difference == 0
        assert d.ci95 == (0, 0)
        assert d.p_value == 1.0
        assert (d.test, d.judged) == ("permutation", 6)


def test_a_paired_difference_is_found_where_intervals_overlap():
    """B is A with one word more right in every caption: small beside the spread of images, never worse."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(40)]
    references = [[" ".join(draw.sample(words, 10))] for _ in range(60)]
    a, b = [], []
    for (reference,) in references:
        kept = draw.choice([1, 8])
        own = reference.split()
        a.append(" ".join(own[:kept] + ["x"] * (10 - kept)))
        b.append(" ".join(own[: kept + 1] + ["x"] * (9 - kept)))
    first, second = Corpus(a, references), Corpus(b, references)
    metrics = ["bleu_1", "rouge_l", "cider_d"]
    alone = [score_captions(corpus, metrics) for corpus in (first, second)]
    for name, d in compare_captions(first, second, metrics).items():
        assert alone[0][name].ci95[1] > alone[1][name].ci95[0]  # the intervals of A and B overlap
        assert d.ci95[0] > 0
        assert d.p_value == pytest.approx(1 / 1001)
        assert d.difference == pytest.approx(alone[1][name].value - alone[0][name].value)
    swapped = compare_captions(second, first, ["rouge_l"])["rouge_l"]
    assert swapped.p_value == pytest.approx(1 / 1001)
    assert swapped.ci95[1] < 0


def test_systems_on_other_images_are_not_compared():
    with pytest.raises(DataError, match="same images with the same references"):
        compare_captions(Corpus(["a"], [["a"]]), Corpus(["a"], [["b"]]), ["bleu_1"])


def test_comparison_json():
    corpus = Corpus(CAPTIONS, REFERENCES)
    entry = comparison_json(compare_captions(corpus, corpus, ["cider_d"]))["cider_d"]
    assert list(entry) == ["a", "b", "difference", "ci95", "p_value", "test", "judged", "signature"]
    assert entry["a"] == entry["b"] == pytest.approx(EXPECTED["cider_d"][0])


# --- nothing to compare


def compared(a, b, **settings):
    """The difference of two columns of scores under the name of a metric that can be without opinion."""
    scores = [{"count_accuracy": _mean(column, "")} for column in (a, b)]
    return paired_differences(*scores, len(a), **settings)["count_accuracy"]


def test_nothing_judged_is_no_comparison():
    """Resamples without a judged image count neither for nor against a difference."""
    difference = compared([None] * 40, [None] * 40)
    assert difference.judged == 0
    assert np.isnan([difference.difference, *difference.ci95, difference.p_value]).all()
    json.dumps(comparison_json({"count_accuracy": difference}), allow_nan=False)
    entry = comparison_json({"count_accuracy": difference})["count_accuracy"]
    assert entry["p_value"] is None
    assert entry["ci95"] == [None, None]
    cells = [
        str(next(iter(column.cells)))
        for column in differences_table({"count_accuracy": difference}, "a", "b").columns
    ]
    assert cells[1:] == ["-", "-", "-", "-", "-", "permutation", "0"]


def test_one_judged_image_is_no_comparison():
    """It would have an interval of [1, 1] and p = 0.002."""
    difference = compared([0.0, *[None] * 39], [1.0, *[None] * 39])
    assert (difference.difference, difference.judged) == (1.0, 1)
    assert np.isnan([*difference.ci95, difference.p_value]).all()


def test_images_judged_on_one_side_only_are_not_compared():
    a, b = [0.0, 1.0, None, None] * 10, [None, None, 1.0, 1.0] * 10
    difference = compared(a, b)
    assert (difference.difference, difference.judged) == (0.5, 0)
    assert np.isnan(difference.p_value)


def test_two_judged_images_prove_nothing():
    # of 4 exchanges 2 are as large as what was seen: p is about 1/2, however many images are not judged
    difference = compared([0.0, 0.0, *[None] * 38], [1.0, 1.0, *[None] * 38])
    assert difference.judged == 2
    assert difference.p_value == pytest.approx(0.5, abs=0.05)
    assert compared([0.0] * 500 + [None] * 3, [1.0] * 500 + [None] * 3).test == "bootstrap"


def test_ties_count_on_both_sides():
    # differences 0 in 3 of 4 resamples, 1 in the other: (4 + 1) >= 0, (3 + 1) <= 0: 2 * (3 + 1) / (4 + 1) > 1
    assert bootstrap_p_value(np.array([0.0, 0.0, 0.0, 1.0])) == 1.0
    # 9 resamples say 1, one is undecided, one says nothing: 2 * (1 + 1) / (10 + 1)
    assert bootstrap_p_value(np.array([1.0] * 9 + [0.0, np.nan])) == pytest.approx(4 / 11)
    assert np.isnan(bootstrap_p_value(np.full(5, np.nan)))


# --- the level of the tests, by simulation under a true null hypothesis


def level(p_value, images, runs=1000, draws=199):
    """How often p <= 0.05 of two systems that differ by chance alone."""
    draw = np.random.default_rng(0)
    pairs = draw.normal(size=(runs, 2, images)) + 2 * draw.normal(
        size=(runs, 1, images)
    )  # easy and hard images
    return np.mean([p_value(*map(as_scores, pair), draws, run) <= 0.05 for run, pair in enumerate(pairs)])


def as_scores(column) -> Scores:
    return _mean(column.tolist(), "")


def by_bootstrap(a, b, draws, seed):
    size = len(a.rows)
    return bootstrap_p_value(resampled_values(b, size, draws, seed) - resampled_values(a, size, draws, seed))


def test_the_permutation_test_holds_its_level_with_twenty_images():
    # 1,000 runs: a standard error of 0.7 %; the bounds are two and a half of them
    assert 0.033 <= level(permutation_p_value, 20) <= 0.067


@pytest.mark.slow
def test_the_bootstrap_test_does_not_with_twenty_images_but_does_with_two_hundred():
    """Why there are two tests: the same ruler finds the wrong one out."""
    assert level(by_bootstrap, 20, runs=600) > 0.067
    assert 0.02 <= level(by_bootstrap, 200, runs=150) <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("bleu_4", 30), ("vocabulary", 100), ("distinct_2", 30)])
def test_the_permutation_test_holds_its_level_for_metrics_of_the_corpus(name, size):
    """Two systems that say one of two captions by chance; statistics of the corpus are no means."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(size)]  # other sizes: nearly all differences are ties
    small, runs = 0, 120
    for run in range(runs):
        references = [[" ".join(draw.sample(words, 8))] for _ in range(20)]
        systems = [[said(draw, text, words) for (text,) in references] for _ in range(2)]
        a, b = (METRICS[name].score(Corpus(captions, references)) for captions in systems)
        small += permutation_p_value(a, b, 99, run) <= 0.05
    # 120 runs: a standard error of 2 %
    assert 0.005 <= small / runs <= 0.1


def said(draw, reference, words):
    kept = draw.randint(2, 8)
    return " ".join(reference.split()[:kept] + draw.choices(words, k=8 - kept))


@pytest.mark.parametrize("name", ["bleu_4", "rouge_l", "distinct_1", "vocabulary", "novel_words"])
def test_an_exchange_is_worth_what_its_captions_are_worth(name):
    """The corpus value of exchanged captions is the metric of a corpus of just those captions."""
    others = CAPTIONS[::-1]
    score = METRICS[name].score
    a, b = (score(Corpus(captions, REFERENCES, settings=TRAINED_ON)) for captions in (CAPTIONS, others))
    stays = np.array([1, 0, 0, 1, 1, 0])
    mixed = [x if stay else y for x, y, stay in zip(CAPTIONS, others, stays, strict=True)]
    found = a.joined(b)(np.concatenate([stays, 1 - stays])[None])[0]
    assert found == pytest.approx(score(Corpus(mixed, REFERENCES, settings=TRAINED_ON)).value, abs=1e-12)
