"""No caption, id, path or value of a recipe carries a script, a style or an address into a page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scst.data.preparation.data_report import DataReport
from scst.data.preparation.inspection import Inspected, inspect
from scst.data.preparation.prepared_dataset import prepare
from scst.data.preparation.statistics import Agreement
from scst.data.preparation.streams import RowStream
from scst.data.validate import BadExample
from scst.experiments.figures import draw_figures
from scst.experiments.matrix_page import matrix_html
from scst.experiments.results import Result, Robustness, rows_of
from scst.explain.explanation import Explanation
from scst.explain.explanation_page import explanation_page
from scst.explain.faithfulness import FaithfulnessCurve
from scst.report.charts import bars, histogram, key_figures, word_cloud
from scst.report.curves import lines
from scst.report.data_page import report_html
from scst.report.page import html_page, tabs
from tests.support.hostile import assert_inert
from tests.support.matrices import SFT, Lab
from tests.support.rows import rows_of as dataset_rows
from tests.support.rows import write_risc

EVIL = "</style></title><script>alert(1)</script><img src=x onerror='alert(2)'>\" onclick=\"alert(3) $\\frac{"
ENTRY = {"value": 0.5, "ci95": [0.4, 0.6], "signature": EVIL}


def matrix_page(tmp_path):
    """Names, prompts, errors, signatures, varied values; a formula that does not parse is text, too."""
    models = [{"name": EVIL, "stages": [SFT], "vary": {"prompt": {EVIL: "p", "b": "q"}}}]
    plan = Lab(tmp_path).plan(models=models, prompts=[EVIL, "caption en"])
    found = [Result(cell, {"cider_d": ENTRY, EVIL: ENTRY}, None) for cell in plan.cells[1:]]
    results = [*found, Result(plan.cells[0], {}, EVIL)]
    rows = rows_of(results)
    robustness = [Robustness(EVIL, "greedy", 8, EVIL, False, (EVIL,), {EVIL: 1.0, "caption en": 0.5})]
    figures = draw_figures(rows, robustness, ["cider_d", EVIL], "cider_d", tmp_path / "figures")
    assert figures
    trainings = [{"stage": EVIL, "folder": EVIL}]
    return matrix_html(EVIL, results, rows, robustness, EVIL, trainings, figures, tmp_path / "figures")


def explained_page(tmp_path):
    """Captions, words and names of models."""
    words = EVIL.split()
    numbers = np.linspace(-3, -1, len(words) + 1)
    heat = {"shap": {which: np.ones((8, 8)) for which in range(len(words) + 1)}}
    shares = {"shap": {which: np.ones(1) for which in range(len(words) + 1)}}
    curve = FaithfulnessCurve(np.array([0.0, 1.0]), np.array([0.0, -1.0]), np.array([-1.0, 0.0]))
    found = Explanation(
        label=EVIL,
        caption=EVIL,
        words=words,
        targets=list(range(len(words) + 1)),
        focus=0,
        logprobs=numbers,
        hidden_logprobs=numbers - 1,
        picture=np.zeros((8, 8, 3), np.uint8),
        segments=np.zeros((8, 8), int),
        heat=heat,
        importance=shares,
        curves={"shap": curve},
    )
    return explanation_page(EVIL, EVIL, Image.new("RGB", (8, 8)), [found, replace(found, label="b")])


def data_page(tmp_path):
    """Captions, ids, splits, reasons, synonyms, categories, the dataset's name."""
    rows = dataset_rows({"train": 4, "val": 2})
    rows[0]["captions"] = [EVIL, "a tree", " ."]
    inspected = inspect(RowStream(str(write_risc(tmp_path / "toy", rows))), thumbnails=6)
    renamed = [replace(e, image_id=f"{EVIL}{i}") for i, e in enumerate(inspected.examples)]
    parts = vars(inspected) | {"bad": [BadExample(EVIL, EVIL)], "examples": renamed}
    parts["thumbnails"] = {f"{EVIL}{i}": "data:image/png;base64,AA" for i in range(len(renamed))}
    inspected = Inspected(**{name: parts[name] for name in Inspected.__dataclass_fields__})
    found = Agreement(images=3, mean=0.5, distinct_mean=0.2, distinct_images=2, per_image=[0.1, 1.0, 0.0])
    report = DataReport(
        dataset=EVIL,
        train_split="train",
        inspected=inspected,
        prepared=prepare(inspected.examples, steps=[], selection="longest"),
        synonyms={EVIL: EVIL},
        agreement={EVIL: found},
        not_measured={EVIL: EVIL},
        categories={e.image_id: EVIL for e in renamed},
    )
    return report_html(report, EVIL)


def parts_page(tmp_path):
    """What every page is made of: labels of tabs and charts, titles, legends."""
    body = tabs("g", {EVIL: "one", "two": "two"}) + bars([(EVIL, 1.0, 2.0)]) + key_figures([(EVIL, EVIL)])
    body += histogram({1: 2, 2: 3}, {1: 1, 2: 4}, last=3, label=EVIL)
    body += lines({EVIL: [(0.0, 1.0), (1.0, 2.0)]}, title=EVIL, horizontal=EVIL)
    body += word_cloud({EVIL: 2, "tree": 1}) or ""
    return html_page(EVIL, EVIL, body)


@pytest.mark.parametrize(
    "page", [matrix_page, explained_page, data_page, parts_page], ids=lambda p: p.__name__
)
def test_pages_are_inert(page, tmp_path):
    assert_inert(page(tmp_path), EVIL)


def test_an_unescaped_text_is_noticed():
    """The control."""
    with pytest.raises(AssertionError):
        assert_inert(html_page("t", "s", f"<p>{EVIL}</p>"), EVIL)
