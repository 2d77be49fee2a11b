"""Tables, ratios, figures and the page of a matrix: literal numbers, and one content in all formats."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import struct
from html import unescape
from html.parser import HTMLParser

import pytest

from scst.experiments import results, tables
from scst.experiments.matrix_run import write_figures, write_tables
from scst.experiments.results import Result, collect, robustness_of, rows_of
from tests.support.matrices import SFT, Lab

SEVERAL = {"name": "several", "stages": [SFT | {"prompts": ["caption en", "What is it?"]}]}


def fake(lab, values, **keys):
    """Results of a plan; ``values``: (model, prompt) -> one value per seed."""
    plan = lab.plan(**keys)
    counts = dict.fromkeys(values, 0)
    found = []
    for cell in plan.cells:
        key = cell.model.name, cell.prompt
        value = values[key][counts[key]]
        counts[key] += 1
        entry = {"value": value, "ci95": [value - 0.1, value + 0.2], "signature": "CIDEr-D|x"}
        found.append(Result(cell, {} if value is None else {"cider_d": entry}, None))
    return found


def test_seeds_become_mean_and_deviation(lab):
    values = {("lora", "p"): [1.0, 2.0, 4.5]}
    models = [{"name": "lora", "stages": [SFT]}]
    (row,) = rows_of(fake(lab, values, models=models, prompts=["p"], seeds=[1, 2, 3]))
    value = row.values["cider_d"]
    # mean 7.5 / 3 = 2.5; deviations -1.5, -0.5, 2: squares 2.25 + 0.25 + 4 = 6.5, over 2: 3.25
    assert (value.value, value.seeds) == (2.5, 3)
    assert value.deviation == pytest.approx(3.25**0.5)
    assert (value.low, value.high) == pytest.approx((2.5 - 3.25**0.5, 2.5 + 3.25**0.5))
    assert tables.cell_text(value) == "2.500 ± 1.803 (3)"
    assert "standard deviation over seeds" in tables.how_to_read([row])
    assert "bootstrap" not in tables.how_to_read([row])


def test_one_seed_keeps_its_interval(lab):
    (row,) = rows_of(fake(lab, {("base", "p"): [1.0]}, models=[{"name": "base"}], prompts=["p"]))
    assert tables.cell_text(row.values["cider_d"]) == "1.000 [0.900, 1.200]"
    assert "bootstrap" in tables.how_to_read([row])


def test_settings_that_all_rows_share_are_said_once(lab):
    models = [{"name": "base"}]
    found = rows_of(
        fake(lab, {("base", "p"): [1.0], ("base", "q"): [2.0]}, models=models, prompts=["p", "q"])
    )
    lines = [["base", "p", "1.000 [0.900, 1.200]"], ["base", "q", "2.000 [1.900, 2.200]"]]
    assert tables.grid(found, ["cider_d"]) == (["model", "prompt", "CIDEr-D"], lines)
    assert tables.how_to_read(found).endswith("; everywhere decoding greedy, tokens 32")
    assert tables.grid(found[:1], ["cider_d"]) == (["model", "CIDEr-D"], [["base", lines[0][2]]])
    assert tables.how_to_read(found[:1]).endswith("; everywhere prompt p, decoding greedy, tokens 32")


def test_length_limits_of_a_robustness_table_are_told_apart():
    entry = results.Robustness("lora", "greedy", 10, "p", True, ("q",), {"p": 1.0, "q": 0.5})
    other = dataclasses.replace(entry, max_new_tokens=20)
    assert tables.decoding_texts([entry, entry]) == ["greedy", "greedy"]
    assert tables.decoding_texts([entry, other]) == ["greedy, 10 tokens", "greedy, 20 tokens"]
    assert [line[1] for line in tables.robustness_lines([entry, other])] == tables.decoding_texts(
        [entry, other]
    )


def test_signatures_that_differ_are_told(lab):
    found = fake(lab, {("base", "p"): [1.0], ("lora", "p"): [2.0]}, prompts=["p"])
    found[1].metrics["cider_d"]["signature"] = "CIDEr-D|y"
    text = tables.markdown("t", found, rows_of(found), [], "cider_d")
    assert "CIDEr-D (they differ: values must not be compared): `CIDEr-D|x`; `CIDEr-D|y`" in text


def test_robustness_is_relative_to_the_training_prompt(lab):
    prompts = ["unseen", "caption en", "What is it?"]
    lora = {("lora", p): [v] for p, v in zip(prompts, [0.5, 2.0, 3.0], strict=True)}
    several = {("several", p): [v] for p, v in zip(prompts, [1.6, 2.0, 1.0], strict=True)}
    models = [{"name": "lora", "stages": [SFT]}, SEVERAL, {"name": "base"}]
    base = {("base", p): [v] for p, v in zip(prompts, [0.0, 1.0, 1.0], strict=True)}
    one, many = robustness_of(
        rows_of(fake(lab, lora | several | base, models=models, prompts=prompts)), "cider_d"
    )
    assert (one.model, one.prompt, one.was_trained_on) == ("lora", "caption en", True)
    assert one.ratios == {"unseen": 0.25, "caption en": 1.0, "What is it?": 1.5}
    assert (one.worst, one.unseen) == ("unseen", ("unseen", "What is it?"))
    assert (many.worst, many.ratios["What is it?"]) == ("What is it?", 0.5)
    assert many.unseen == ("unseen",)
    # the base model was trained on none of them, and the first one's value is 0: no ratio is left


def test_a_model_without_training_is_compared_with_the_first_prompt(lab):
    values = {("base", "a"): [2.0], ("base", "b"): [1.0]}
    (entry,) = robustness_of(
        rows_of(fake(lab, values, models=[{"name": "base"}], prompts=["a", "b"])), "cider_d"
    )
    assert (entry.prompt, entry.was_trained_on, entry.ratios["b"]) == ("a", False, 0.5)
    assert "a (not trained on)" in tables.robustness_lines([entry])[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A matrix of 20 cells, half of which failed, with everything that is written about it."""
    lab = Lab(tmp_path_factory.mktemp("written"))
    keys = {"models": [{"name": "<base>"}, {"name": "lora", "stages": [SFT], "vary": {"lora_rank": [2, 4]}}]}
    keys |= {"prompts": ["caption en", "a | b"], "max_new_tokens": [8, 13], "seeds": [1, 2]}
    outcome, _ = lab.run(**keys)
    plan, root = lab.plan(**keys), lab.folder / "out"
    write_figures(plan, root, write_tables(plan, root, outcome.errors, "cider_d"), "cider_d")
    return lab.folder / "out"


@pytest.mark.slow
def test_all_formats_say_the_same(written):
    content = json.loads((written / "matrix.json").read_text())
    lines = list(csv.DictReader(io.StringIO((written / "matrix.csv").read_text())))
    assert len(content["cells"]) == 2 * 2 + 2 * 2 * 2 * 2  # base once, two models with two seeds
    failed = [cell for cell in content["cells"] if cell["state"] == "failed"]
    assert {cell["keys"]["max_new_tokens"] for cell in failed} == {13}
    assert {cell["error"] for cell in failed} == {"thirteen tokens"}

    from_json = {
        (c["keys"]["model"], c["keys"]["prompt"], str(c["keys"]["seed"]), name): entry
        for c in content["cells"]
        for name, entry in c["metrics"].items()
    }
    from_csv = {(li["model"], li["prompt"], li["seed"], li["metric"]): li for li in lines if li["metric"]}
    assert set(from_csv) == set(from_json)
    for key, entry in from_json.items():
        line = from_csv[key]
        assert [float(line[k]) for k in ("value", "ci95_low", "ci95_high")] == [
            entry["value"],
            *entry["ci95"],
        ]
        assert line["signature"] == entry["signature"]
        assert (written / line["folder"] / "metrics.json").is_file()
    assert {line["lora_rank"] for line in lines if line["model"] != "<base>"} == {"2", "4"}
    assert sum(line["state"] == "failed" for line in lines) == len(failed)

    table = [
        re.split(r"(?<!\\)\|", li)
        for li in (written / "matrix.md").read_text().partition("##")[0].splitlines()
        if "| " in li
    ]
    head, *lines = [[unescape(text.strip().replace("\\|", "|")) for text in line[1:-1]] for line in table]
    assert head[:3] == ["model", "prompt", "tokens"]  # all are greedy
    shown = {tuple(line[:3]): line[head.index("CIDEr-D")] for line in lines}
    for row in content["rows"]:
        keys, value = row["keys"], row["metrics"].get("cider_d")
        text = shown[keys["model"], keys["prompt"], str(keys["max_new_tokens"])]
        assert text.split()[0] == (f"{value['value']:.3f}" if value else "-")
        if value and value["seeds"] == 2:
            assert text == f"{value['value']:.3f} ± {value['deviation']:.3f} (2)"


class Page(HTMLParser):
    """What a page loads, and whether its tables may scroll by themselves."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.bare_tables, self.cells = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "table":
            self.bare_tables += "scroll" not in self.open
        if tag not in ("meta", "img", "br"):
            self.open.append(attributes.get("class") or tag)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


def test_the_page_needs_no_other_file_and_fits_a_phone(written):
    text = (written / "matrix.html").read_text()
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.bare_tables == 0
    assert "<script" not in text
    assert 'name="viewport"' in text
    assert {"<base>", "a | b"} <= set(page.cells), "escaped once"
    assert page.open == []
    assert "thirteen tokens" in text


def test_figures_have_their_files(written):
    names = {path.stem for path in (written / "figures").glob("*.png")}
    assert names == {"cider_d", "bleu_4", "prompt-robustness", "ablation-lora"}
    for path in (written / "figures").glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 960
        assert 300 < height < 1500


def test_collecting_reads_complete_cells_only(lab):
    lab.run()
    plan = lab.plan(prompts=["caption en", "later"])
    states = [(result.cell.prompt, result.state) for result in collect(plan, {})]
    assert states == [("caption en", "complete"), ("later", "missing")] * 2
    assert results.metric_names(collect(plan, {})) == ["cider_d", "bleu_4"]
