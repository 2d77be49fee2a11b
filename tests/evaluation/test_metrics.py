"""Scores against pycocoevalcap, degenerate input, intervals, signatures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from scst.evaluation.java import find_java, ptb_tokenize

from scst.errors import DataError, RecipeError, ScstError
from scst.evaluation import java, meteor, metrics
from scst.evaluation.metrics import METRICS, metrics_json, score_captions, tokenized_corpus
from tests.evaluation.golden import CAPTIONS, EXPECTED, REFERENCES

JAVA_FREE = [name for name in METRICS if name != "meteor"]  # only the tokenizer, which starts in 0.2 s


@pytest.mark.parametrize("name", METRICS)
def test_golden_values(golden_results, name):
    value, per_caption = EXPECTED[name]
    assert golden_results[name].value == pytest.approx(value, abs=1e-12)
    assert golden_results[name].per_caption == pytest.approx(per_caption, abs=1e-12)


def test_tokenizer_equals_pycocoevalcaps():
    captions = [
        *CAPTIONS,
        "",
        *(text for group in REFERENCES for text in group),
        "U.S. 3-story café's [x] 😀 roofs",
    ]
    theirs = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]
    assert ptb_tokenize(captions) == theirs


def test_tokenizer_equals_pycocoevalcaps_on_real_captions(shared_data):
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text().splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    assert len(captions) == 5470
    theirs = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]
    assert ptb_tokenize(captions) == theirs


def test_line_breaks_do_not_shift_the_following_captions():
    breaks = ["a\nriver", "b\r\nriver", "c\u2028river", "d\x85river", "\n\n", "e\vriver\n", "last"]
    expected = ["a river", "b river", "c river", "d river", "", "e river", "last"]
    assert ptb_tokenize(breaks) == expected


def test_caption_equal_to_all_its_references_reaches_the_maximum():
    captions = ["two planes are parked near a terminal", "a wide river flows through the green forest"]
    captions += ["many tennis courts lie beside some houses", "six white storage tanks stand in the desert"]
    results = score_captions(captions, [[caption] * 5 for caption in captions], JAVA_FREE)
    # Cosine 1 for each n-gram order, length difference 0: CIDEr-D = 10 * mean(1, 1, 1, 1).
    assert results["cider_d"].per_caption == pytest.approx([10.0] * 4, abs=1e-9)
    assert all(results[name].value == pytest.approx(1.0, abs=1e-6) for name in JAVA_FREE if name != "cider_d")


def test_meteor_is_one_for_an_identical_caption_and_zero_for_an_empty_one(golden_results):
    assert golden_results["meteor"].per_caption[0] == 1.0
    assert golden_results["meteor"].per_caption[-1] == 0.0


def test_empty_captions_score_zero_and_hurt_nobody_else():
    spoiled = score_captions(["", *CAPTIONS[1:]], REFERENCES, JAVA_FREE)
    whole = score_captions(CAPTIONS, REFERENCES, JAVA_FREE)
    for name in JAVA_FREE:
        assert spoiled[name].per_caption[0] == pytest.approx(0, abs=1e-6)
        assert spoiled[name].per_caption[1:] == pytest.approx(whole[name].per_caption[1:])


def test_everything_empty_scores_zero_everywhere():
    results = score_captions(["", " \n", "."], [["a road"], [" ."], ["", ""]], JAVA_FREE)
    for result in results.values():
        assert result.value == pytest.approx(0, abs=1e-9)
        assert np.isfinite([*result.ci95, *result.per_caption]).all()


def test_only_empty_references():
    results = score_captions(["a road", ""], [[" ."], ["", "!"]], JAVA_FREE)
    assert all(result.value == pytest.approx(0, abs=1e-6) for result in results.values())


def test_one_image_and_one_reference():
    results = score_captions(["a road 😀"], [["a road"]], JAVA_FREE)
    assert results["cider_d"].value == 0  # log(1 image) = 0: every n-gram is in every document
    assert results["bleu_2"].value == pytest.approx(1.0, abs=1e-6)  # the tokenizer drops the emoji
    assert results["bleu_2"].signature.startswith("BLEU-2|refs:1|")


def test_intervals_contain_the_value_and_repeat(golden_results):
    for name in JAVA_FREE:
        low, high = golden_results[name].ci95
        assert low < golden_results[name].value < high
    again = score_captions(CAPTIONS, REFERENCES, JAVA_FREE)
    assert all(again[name] == golden_results[name] for name in JAVA_FREE)
    other = score_captions(CAPTIONS, REFERENCES, ["cider_d"], seed=1)["cider_d"]
    assert other.ci95 != golden_results["cider_d"].ci95


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    column = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    low, high = metrics.bootstrap_interval(metrics._mean(column.tolist()), 1000, 0)
    # mean +- 1.96 * standard error, with 1000 resamples good to about 5 % of the width
    half = 1.96 * column.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((column.mean() - half, column.mean() + half), abs=0.1 * half)


def test_bootstrap_formulas_equal_the_corpus_values():
    corpus = tokenized_corpus(CAPTIONS, REFERENCES)
    for order in (1, 2, 3, 4):
        scores = METRICS[f"bleu_{order}"].score(corpus)
        sums = scores.statistics.sum(0, keepdims=True)
        assert scores.from_sums(sums, len(CAPTIONS))[0] == pytest.approx(
            EXPECTED[f"bleu_{order}"][0], rel=1e-12
        )


def test_meteor_formula_equals_the_jar():
    # Lines of `java -jar meteor-1.5.jar - - -stdio -l en -norm` (SCORE), and its answers to EVAL; the third
    # caption equals its reference, the fourth is empty, the second matches by stem and paraphrase.
    lines = [
        "4 5 2 3 2 2 2 2 0 0 0 0 0 0 0 0 0 0 0 0 2 4 4",
        "7 7 3 3 3 3 2 2 1 1 0 0 0 0 1 1 0 0 0 0 3 7 7",
        "2 2 0 0 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2",
        "0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "3 2 0 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1",
    ]
    statistics = np.array([[float(number) for number in line.split()] for line in lines])
    segments = [0.43179178487893827, 0.4474649080314708, 1, 0, 0, 0, 0.25263157894736843]
    assert meteor.meteor_value(statistics) == pytest.approx(segments, abs=1e-12)
    corpus = meteor.meteor_value(meteor._without_whole_matches(statistics).sum(0))
    assert corpus == pytest.approx(0.3719689814301019, abs=1e-12)


def test_signatures(golden_results):
    assert golden_results["bleu_4"].signature == "BLEU-4|refs:2|tok:ptb|smooth:none|v:0.1.0"
    head, df, tail = golden_results["cider_d"].signature.partition("df:corpus,image,")
    assert head == "CIDEr-D|refs:2|"
    assert df
    assert tail[6:] == "|tok:ptb|eos:no|sigma:6|n:4|v:0.1.0"
    int(tail[:6], 16)
    mixed = score_captions(["a", "b"], [["a"], ["b", "c", "d"]], ["rouge_l"])
    assert mixed["rouge_l"].signature == "ROUGE-L|refs:1-3|tok:ptb|beta:1.2|v:0.1.0"


def test_document_frequencies_are_those_of_the_references_alone():
    def df(captions, references):
        return score_captions(captions, references, ["cider_d"], bootstrap_samples=2)["cider_d"].signature

    assert df(CAPTIONS, REFERENCES) == df(CAPTIONS[::-1], REFERENCES)
    assert df(CAPTIONS, REFERENCES) != df(CAPTIONS, [*REFERENCES[:-1], ["another road", "a road"]])


def test_metrics_json(golden_results):
    summary = json.loads(json.dumps(metrics_json(golden_results)))
    assert list(summary) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "meteor"]
    for entry in summary.values():
        assert list(entry) == ["value", "ci95", "signature"]
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]


def test_wrong_input_is_refused_with_what_came():
    with pytest.raises(RecipeError, match=r"unknown \['cider'\].*bleu_1.*cider_d"):
        score_captions(["a"], [["a"]], ["cider"])
    with pytest.raises(DataError, match="at least one"):
        score_captions([], [], ["bleu_1"])
    with pytest.raises(DataError, match="2 captions, but references for 1"):
        score_captions(["a", "b"], [["a"]], ["bleu_1"])
    for group in ([], "a road", [None]):
        with pytest.raises(DataError, match="caption 0: expected text and a list of texts"):
            score_captions(["a"], [group], ["bleu_1"])


def test_without_java_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(java.shutil, "which", lambda _: None)
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ScstError, match=r"pip install scst\[eval\]"):
        find_java()


def test_java_is_given_relative_paths_so_that_spaces_do_not_matter(monkeypatch):
    """Unless the paraphrase table is named, METEOR looks for it where spaces are escaped twice."""
    seen = []

    def start(command, cwd, **settings):
        seen.append((command, cwd))
        raise OSError("started")

    monkeypatch.setattr(meteor.subprocess, "Popen", start)
    with pytest.raises(OSError, match="started"):
        meteor.MeteorProcess(1.0)
    command, folder = seen[0]
    table = command[command.index("-a") + 1]
    assert not any(argument.startswith("/") for argument in command[1:])
    assert (folder / table).is_file()


def test_a_hanging_meteor_is_killed(monkeypatch, tmp_path):
    deaf = tmp_path / "java"
    deaf.write_text("#!/bin/sh\necho I hang >&2\nexec sleep 60\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(meteor, "find_java", lambda: str(deaf))
    with pytest.raises(ScstError, match=r"killed after 1 s .* It said: I hang"):
        meteor.meteor_scores(["a"], [["a"]], timeout_s=1.0)
