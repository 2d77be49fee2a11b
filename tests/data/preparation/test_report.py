"""The data report: a page that parses, shows what was done, escapes what it is given, and stands alone."""

import json
import re
import time
from html.parser import HTMLParser

import pytest

from scst.data.preparation.cleaning import parse_steps
from scst.data.preparation.data_report import DataReport, report_json, summary_rows
from scst.data.preparation.inspection import Example, Inspected, inspect
from scst.data.preparation.prepared_dataset import prepare
from scst.data.preparation.statistics import Agreement
from scst.data.preparation.streams import RowStream
from scst.data.validate import BadExample
from scst.report import charts
from scst.report.charts import bars, histogram, word_cloud
from scst.report.data_page import report_html
from tests.support.browser import OpenPage
from tests.support.rows import rows_of, write_risc

VOID = {"meta", "img", "br", "rect", "path"}


class Page(HTMLParser):
    """Tags counted, nesting checked, texts and addresses collected."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], []
        self.feed(html)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(tmp_path):
    """A small dataset that has a bit of everything."""
    rows = rows_of({"train": 8, "val": 3})
    rows[0]["captions"] = ["<script>alert(1)</script> tree", "Two  Planes .", " ."]
    rows[1]["captions"] = ["1 .", "1 .", "1 ."]
    inspected = inspect(RowStream(str(write_risc(tmp_path / "toy", rows))), thumbnails=11)
    inspected = Inspected(**(vars(inspected) | {"bad": [BadExample("img_99", "image file missing: x.png")]}))
    prepared = prepare(
        inspected.examples,
        steps=parse_steps(["lowercase", "drop-degenerate", "dedupe"]),
        selection="longest",
    )
    found = Agreement(images=9, mean=0.5, distinct_mean=0.25, distinct_images=4, per_image=[0.1, 1.0, 0.0])
    return DataReport(
        dataset="toy",
        train_split="train",
        inspected=inspected,
        prepared=prepared,
        synonyms={"aircraft": "plane"},
        agreement={"bleu_4": found},
        not_measured={"meteor": "no Java runtime found"},
        categories={},
    )


def test_the_page(report):
    html = report_html(report, "a & b")
    page = Page(html)
    text = " ".join(page.texts)
    assert "Data report: a & b" in text
    assert page.tags.count("img") == 11
    assert "script" not in page.tags, "captions are escaped"
    assert "<script>alert(1)</script> tree" in text
    for expected in (
        "Cleaning left 1 images without a caption",
        "9 of 9 captions of val (100.0 %) stand word for word in train",
        "1 examples cannot be used",
        "aircraft",
        "METEOR was not measured: no Java runtime found",
        "no letters",
        "drop-degenerate",
        "By ",
    ):
        assert expected in text


def test_the_page_needs_nothing_else(report):
    html = report_html(report, "x")
    assert all(address.startswith("data:") for address in Page(html).addresses)
    for outside in ("http://", "https://", "@import", "url(/"):
        assert outside not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_page_on_a_phone(report, browser, tmp_path):
    file = tmp_path / "data_report.html"
    file.write_text(report_html(report, "a-very-long-path/" * 10), encoding="utf-8")
    with OpenPage(browser, file) as opened:
        opened.check()
        assert opened.count("img") == 11
        assert opened.count("h2") >= 5
        opened.in_the_dark()
        assert opened.contrast(".soft") > 4.5


def test_numbers_as_json(report):
    numbers = json.loads(json.dumps(report_json(report)))
    assert numbers["before"]["images"] == 8
    assert numbers["after"]["images"] == 7
    assert numbers["images_left_without_caption"] == ["img_1"]
    assert [step["dropped"] for step in numbers["steps"]] == [
        0,
        10,
        0,
    ]  # " .", "1 ." three times, "planes ." six times
    assert numbers["steps"][0]["changed"] == 1
    assert numbers["selection"] == {"policy": "longest", "chosen": {"0": 1, "1": 6}}
    assert numbers["agreement"]["bleu_4"] == {
        "images": 9, "mean": 0.5, "distinct_mean": 0.25, "distinct_images": 4,
    }  # fmt: skip
    assert summary_rows(report)[0] == ("images", "8", "7")


def test_a_plain_report_has_one_series(report, tmp_path):
    plain = DataReport(**(vars(report) | {"prepared": prepare(report.inspected.examples)}))
    assert plain.unchanged
    html = report_html(plain, "x")
    assert 'class="was"' not in html
    assert "<h2>Cleaning</h2>" not in html
    assert 'class="was"' in report_html(report, "x")


def test_without_wordcloud_the_page_says_so(report, monkeypatch):
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "scst[report]"' in report_html(report, "x")


def test_histogram_bars_are_shares():
    # 1 of 4 before is 25 %, 2 of 2 after 100 %, the highest bar; 7 and 9 fall into the last bar
    svg = histogram({1: 1, 2: 3}, {7: 1, 9: 1}, last=5, label="words <per> caption")
    assert "5+: 0.0 % before, 100.0 % after" in svg
    assert "1: 25.0 % before, 0.0 % after" in svg
    assert re.findall(r">(\d+\+?)</text>", svg) == ["0", "1", "2", "3", "4", "5+"]
    paths = re.findall(r"</title><path d=\"([^\"]*)\"", svg)
    sides = [[float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)] for path in paths]
    heights = [max(side) - min(side) for side in sides]
    shares = [height / max(heights) for height in heights]
    assert shares == pytest.approx([0, 0.25, 0.75, 0, 0, 0, 0, 0, 0, 0, 0, 1], abs=1e-3), "before, then after"
    assert svg.count("<title>") == 2 * 6
    assert "words &lt;per&gt; caption" in svg
    assert "NaN" not in histogram({}, {}, last=3, label="x")


def test_bars_are_scaled_to_the_largest():
    html = bars([("a & b", 5, 10), ("c", 0, 0)])
    assert "a &amp; b" in html
    assert "width:100.0%" in html
    assert "width:50.0%" in html
    assert "10 → 5" in html
    assert bars([]) == '<div class="bars"></div>'


def test_the_word_cloud_is_selfcontained_and_keeps_its_font_to_itself(monkeypatch):
    pytest.importorskip("wordcloud")
    svg = word_cloud({"tree": 9, "road": 3})
    assert ">tree</text>" in svg
    assert "<style>text{" not in svg
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert word_cloud({}) is None
    later = time.time() + 100  # seen: another second in the font's date
    monkeypatch.setattr(time, "time", lambda: later)
    assert word_cloud({"tree": 9, "road": 3}) == svg, "the same page for the same data"


def test_every_text_of_the_data_is_escaped():
    """``<u>`` in whatever a dataset can say: the page has no such tag."""
    texts = [["<u>long caption of <u>", "<u>a b"], ["<u>long caption of <u>"] * 2, ["<u>", "1"], ["x y <u>"]]
    examples = [
        Example(
            i, f"<u>{i}", references, "<u>t" if i < 3 else "<u>v", {}, "same" if i < 2 else str(i), (8, 8)
        )
        for i, references in enumerate(texts)
    ]
    inspected = Inspected(
        examples,
        [BadExample("<u>bad", "<u>: x")],
        1,
        {e.image_id: "data:image/jpeg;base64,AA" for e in examples},
    )
    prepared = prepare(
        examples, train_split="<u>t", steps=parse_steps(["nfkc", "length 2-9"]), selection="longest"
    )
    assert prepared.emptied == ["<u>2"]
    report = DataReport(
        dataset="<u>d",
        train_split="<u>t",
        inspected=inspected,
        prepared=prepared,
        synonyms={"<u>": "<u>"},
        agreement={"<u>": Agreement(1, 0, 0, 1, [0])},
        not_measured={"<u>m": "<u>"},
        categories={"<u>0": "<u>c"},
    )
    page = Page(report_html(report, "<u>title"))
    assert "u" not in page.tags
    text = " ".join(page.texts)
    for told in (
        "<u>title",
        "<u>d",
        "<u>t",
        "<u>v",
        "<u>2",
        "<u>0 = <u>1",
        "<u>m",
        "<u>c",
        "<u>long caption",
    ):
        assert told in text
