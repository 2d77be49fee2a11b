"""A whole evaluation of a tiny model: files, report, tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from scst.errors import DataError, RecipeError
from scst.evaluation import evaluation
from scst.evaluation.captioning import Caption
from scst.evaluation.evaluation import Evaluation
from scst.evaluation.evaluation_page import Report, report_html
from scst.evaluation.side_by_side import captions_table, comparison_table
from scst.metrics.bootstrap import score_captions
from scst.metrics.suite import METRICS as REGISTRY
from scst.metrics.suite import Corpus, MetricSettings
from tests.support.golden import CAPTIONS, REFERENCES


def evaluate(model, processor, dataset, **settings):
    """The summary of an evaluation with these settings."""
    return Evaluation(**settings).run(model, processor, dataset)


METRICS = ("bleu_1", "cider_d", "bad_ending_rate", "truncation_rate")
SETTINGS = {"prompt": "caption en", "max_new_tokens": 5, "metrics": METRICS, "bootstrap_samples": 50}


class Page(HTMLParser):
    """Counts tags, and fails on one that is not closed."""

    VOID = frozenset({"meta", "img", "br", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def quiet():
    return Console(file=io.StringIO(), width=100)


def show(table):
    console = quiet()
    console.print(table)
    return console.file.getvalue()


@pytest.fixture
def scripted(monkeypatch):
    """Captions of our choice in place of the model's."""

    def use(captions):
        monkeypatch.setattr(evaluation, "caption_images", lambda *args, **settings: captions)

    return use


def test_evaluation_leaves_all_its_files(tiny_model, tiny_processor, dataset, tmp_path):
    console = quiet()
    summary = evaluate(tiny_model, tiny_processor, dataset, output_dir=tmp_path, console=console, **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.json",
        "predictions.jsonl",
        "report.html",
    ]
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == dataset["image_id"][:]
    assert all(list(row) == ["image_id", "caption", "references", "ended_by_eos"] for row in rows)
    assert "CIDEr-D" in console.file.getvalue()
    page = Page((tmp_path / "report.html").read_text())
    assert page.count("img") == 15  # by each of two metrics three best and two worst, and the table of all
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for tag, attrs in page.tags if tag == "img")


def test_captions_cannot_write_html(scripted, dataset, tmp_path):
    hostile = "<script>alert(1)</script> & \"quotes\" <img src=x onerror='x'>"
    scripted([Caption(hostile, False, 5)] * 5)
    evaluate(None, None, dataset, output_dir=tmp_path, console=quiet(), title="<i>t</i>", **SETTINGS)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.count("script") == page.count("i") == 0
    assert page.count("b") == 4  # the facts: not the one in an image's id
    assert page.count("img") == 15
    assert hostile in "".join(page.text)
    assert "alert('reference')" in "".join(page.text)


def test_an_interrupted_evaluation_has_no_metrics(scripted, dataset, tmp_path, monkeypatch):
    scripted([Caption("a road", True, 3)] * 5)
    (tmp_path / "metrics.json").write_text("{}")

    def fail(*args, **settings):
        raise OSError("disk full")

    monkeypatch.setattr(evaluation, "report_html", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(None, None, dataset, output_dir=tmp_path, console=quiet(), **SETTINGS)
    assert not (tmp_path / "metrics.json").exists()


def test_wrong_requests_fail_before_captioning(scripted, dataset, tmp_path):
    scripted(None)
    bad_metric = SETTINGS | {"metrics": ("ciderr",)}
    with pytest.raises(RecipeError, match="cider_d"):
        evaluate(None, None, dataset, output_dir=tmp_path, **bad_metric)
    with pytest.raises(RecipeError, match="unknown preset"):
        evaluate(None, None, dataset, output_dir=tmp_path, decoding="best", **SETTINGS)
    with pytest.raises(DataError, match=r"lacks \['references'\]; it has \['image', 'image_id'\]"):
        evaluate(None, None, dataset.remove_columns("references"), output_dir=tmp_path, **SETTINGS)
    with pytest.raises(DataError, match="no rows"):
        evaluate(None, None, dataset.select([]), output_dir=tmp_path, **SETTINGS)


def test_truncation_is_counted(scripted, dataset, tmp_path):
    scripted([Caption("a road", True, 3)] * 4 + [Caption("a road with", False, 3)])
    summary = evaluate(None, None, dataset, output_dir=tmp_path, console=quiet(), **SETTINGS)
    assert summary["truncation_rate"]["value"] == summary["bad_ending_rate"]["value"] == 0.2
    assert summary["truncation_rate"]["signature"] == "truncated|v:0.2.0"


def test_images_and_training_captions_reach_their_metrics(scripted, dataset, tmp_path, monkeypatch):
    scripted([Caption("a road", True, 3)] * 5)
    seen = []

    def score(corpus):
        seen.extend(image.size for image in corpus.images)
        assert list(corpus.image_ids) == dataset["image_id"][:]
        return REGISTRY["length"].score(corpus)

    monkeypatch.setitem(REGISTRY, "clipscore", replace(REGISTRY["length"], score=score, needs=("images",)))
    settings = SETTINGS | {
        "metrics": ("clipscore", "novel_captions"),
        "settings": MetricSettings(training_captions=["A road."]),
    }
    summary = evaluate(None, None, dataset, output_dir=tmp_path, console=quiet(), **settings)
    assert len(seen) == 5
    assert summary["novel_captions"]["value"] == 0


def test_a_report_of_metrics_without_scores_per_caption(scripted, dataset, tmp_path):
    scripted([Caption("a road", True, 3)] * 5)
    settings = SETTINGS | {"metrics": ("vocabulary",)}
    evaluate(None, None, dataset, output_dir=tmp_path, console=quiet(), **settings)
    text = (tmp_path / "report.html").read_text()
    assert Page(text).count("img") == 5
    assert "Best and worst captions" not in text


def test_report_without_cider_and_with_empty_captions(images):
    results = score_captions(Corpus(CAPTIONS, REFERENCES), ["rouge_l"])
    ids = list("abcdef")
    corpus = Corpus([""] * 6, [["a road"]] * 6, images=[images[0]] * 6, image_ids=ids)
    page = report_html(Report("t", "s", corpus, results, examples=2))
    assert Page(page).count("img") == 10
    assert ">ROUGE-L</label>" in page
    assert "(empty)" in page


def test_runs_side_by_side(scripted, dataset, tmp_path):
    for name, caption in (("base", "a [bold]road"), ("scst", "a river with a")):
        scripted([Caption(caption, True, 4)] * 5)
        evaluate(None, None, dataset, output_dir=tmp_path / name, console=quiet(), **SETTINGS)
    runs = {name: tmp_path / name for name in ("base", "scst")}
    shown = show(comparison_table(runs))
    assert "CIDEr-D" in shown
    assert "(!)" not in shown
    assert "1.000" in shown  # every caption of `scst` ends badly
    shown = show(captions_table(runs, images=2))
    assert shown.count("a [bold]road") == shown.count("a river with a") == 2


def test_runs_that_cannot_be_compared_are_marked(scripted, dataset, tmp_path):
    scripted([Caption("a road", True, 4)] * 5)
    evaluate(None, None, dataset, output_dir=tmp_path / "all", console=quiet(), **SETTINGS)
    scripted([Caption("a road", True, 4)] * 3)
    evaluate(None, None, dataset.select(range(3)), output_dir=tmp_path / "few", console=quiet(), **SETTINGS)
    shown = show(comparison_table({"all": tmp_path / "all", "few": tmp_path / "few"}))
    assert "CIDEr-D (!)" in shown
    with pytest.raises(DataError, match="finished evaluation"):
        comparison_table({"none": tmp_path})
