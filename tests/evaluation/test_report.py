"""The report of an evaluation: what each section is made of, and the page in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from scst.data.files import write_jsonl
from scst.errors import DataError, RecipeError
from scst.evaluation import evaluation
from scst.evaluation.captioning import Caption
from scst.evaluation.comparison import compare_with, other_evaluation
from scst.evaluation.evaluation import Evaluation
from scst.evaluation.evaluation_page import Report, rankings, report_html
from scst.evaluation.samples import ScoredSamples, sample_captions, spread_indices, training_sampling
from scst.evaluation.training_log import TrainingStage, training_stages
from scst.evaluation.training_section import _ends, rewards_section, training_section
from scst.metrics.bootstrap import metric_results, metric_scores
from scst.metrics.paired import compare_captions
from scst.metrics.suite import METRICS, Corpus, MetricSettings
from scst.models.policy import policy_for
from scst.models.prompts import PromptEncoder
from scst.report.curves import lines
from scst.rollout.greedy import greedy_captions
from scst.types import Sampling
from tests.support.browser import DESKTOP, PHONE, OpenPage
from tests.support.golden import CAPTIONS, REFERENCES
from tests.support.tiny import build_model


def evaluate(model, processor, dataset, **settings):
    """The summary of an evaluation with these settings."""
    return Evaluation(**settings).run(model, processor, dataset)


IDS = [f"img_{i}" for i in range(5)]
QUALITY = ("cider_d", "bleu_4", "rouge_l")
HOSTILE = "<script>document.title = 'taken'; alert(1)</script><img src=x onerror=alert(2)>"
LONG = "a-very-long-path/" * 10
SETTINGS = {"prompt": "caption en", "max_new_tokens": 5, "metrics": QUALITY, "bootstrap_samples": 50}


def write_run(folder, stage, *, steps, adapter=None, **entries):
    """A folder as training leaves it; ``entries`` are functions of the step."""
    folder.mkdir(parents=True)
    log = [{"step": step, **{name: of(step) for name, of in entries.items()}} for step in range(1, steps + 1)]
    log.append({"step": steps, "train_loss": 1.0, "note": "no number"})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    recipe = {"adapter": None if adapter is None else str(adapter), "temperature": 0.7, "top_k": 9}
    (folder / "run.json").write_text(json.dumps({"stage": stage, "recipe": recipe}))
    return folder


def both_stages(folder):
    """SFT, and the SCST run that names it."""
    sft = write_run(folder / "sft", "sft", steps=40, loss=lambda s: 3 / s, eval_cider_d=lambda s: s / 40)
    rewards = {"reward_cider_d": lambda s: s, f"reward_{HOSTILE}": lambda s: 1.0}
    shares = {"advantage_share_cider_d": lambda s: 0.9, f"advantage_share_{HOSTILE}": lambda s: 0.1}
    greedy = {"reward_sampled": lambda s: s, "reward_greedy": lambda s: s + 1}
    return write_run(folder / "scst", "scst", steps=20, adapter=sft, **rewards, **shares, **greedy)


def golden_corpus(images, captions=CAPTIONS[:5], **settings):
    return Corpus(
        list(captions),
        REFERENCES[:5],
        images=[images[i % 4] for i in range(5)],
        image_ids=IDS,
        settings=MetricSettings(**settings),
    )


# --- the log of the training


def test_both_stages_are_found_wherever_the_runs_are(tmp_path):
    scst = both_stages(tmp_path / "here")
    names = [(stage.name, len(stage.log)) for stage in training_stages(scst)]
    assert names == [("sft", 41), ("scst", 21)]
    shutil.move(tmp_path / "here", tmp_path / "moved")  # the record's path is of the old place
    assert [stage.name for stage in training_stages(tmp_path / "moved" / "scst")] == ["sft", "scst"]
    checkpoint = tmp_path / "moved" / "scst" / "checkpoint-20"
    checkpoint.mkdir()
    shutil.copy(tmp_path / "moved" / "scst" / "trainer_state.json", checkpoint)
    assert [stage.name for stage in training_stages(checkpoint)] == ["sft", "scst"]


def test_adapters_without_a_log_have_no_stages(tmp_path, caplog):
    assert training_stages(None) == training_stages("somebody/adapter") == training_stages(tmp_path) == []
    (tmp_path / "trainer_state.json").write_text('{"log_history": [')
    assert training_stages(tmp_path) == []
    assert "cannot be read" in caplog.text


def test_adapters_that_name_each_other_end(tmp_path):
    write_run(tmp_path / "a", "sft", steps=1, adapter=tmp_path / "b", loss=float)
    write_run(tmp_path / "b", "sft", steps=1, adapter=tmp_path / "a", loss=float)
    assert len(training_stages(tmp_path / "a")) == 2


def test_long_series_become_means_of_neighbours(tmp_path):
    log = [{"step": step, "loss": float(step)} for step in range(1, 8)]
    stage = TrainingStage("sft", tmp_path, {}, log)
    # three points at most: 7 / 3 = 2.3, parts of 3: (1 + 2 + 3) / 3, (4 + 5 + 6) / 3, 7 / 1
    assert stage.series("loss", most=3) == [(3, 2.0), (6, 5.0), (7, 7.0)]
    assert stage.series("loss") == [(entry["step"], entry["loss"]) for entry in log]
    assert stage.series("reward") == []


def test_what_is_no_finite_number_is_left_out(tmp_path):
    folder = write_run(
        tmp_path / "sft", "sft", steps=3, loss=lambda step: float("nan") if step == 2 else 1.0, flag=bool
    )
    (stage,) = training_stages(folder)
    assert stage.series("loss") == [(1, 1.0), (3, 1.0)]
    assert stage.series("flag") == []


def points_of(svg: str, colour: str) -> list[tuple[float, float]]:
    """The points of the line of a colour, in units of the SVG."""
    line = next(tag for tag in re.findall(r"<path[^>]*>", svg) if colour in tag and "clip-path" in tag)
    numbers = map(float, re.findall(r"-?[\d.]+", re.search(r' d="([^"]*)"', line)[1]))
    return list(zip(*[iter(numbers)] * 2, strict=True))


def test_curves_literally():
    svg = lines({"a": [(0, 1.0), (10, 3.0)], "b": [(5, 2.0)]}, title="x & y")
    # SVG counts y from the top: (0, 1) is lower left, (10, 3) upper right, (5, 2) the middle of both
    (x0, y0), (x1, y1) = points_of(svg, "var(--fill)")
    assert x0 < x1
    assert y0 > y1
    assert points_of(svg, "var(--second)") == [pytest.approx([(x0 + x1) / 2, (y0 + y1) / 2], abs=0.02)]
    assert "x &amp; y" in svg
    assert "a (3)" in svg
    assert svg == lines({"a": [(0, 1.0), (10, 3.0)], "b": [(5, 2.0)]}, title="x & y"), "no date, no random id"
    assert lines({}, title="nothing") == ""
    assert "NaN" not in lines({"a": [(1, 2.0)]}, title="one point")


def test_the_rewards_table_has_the_ends_of_the_run(tmp_path):
    stages = training_stages(both_stages(tmp_path))
    # 20 steps: a tenth is 2: (1 + 2) / 2 and (19 + 20) / 2
    assert _ends(stages[1].series("reward_cider_d")) == (1.5, 19.5)
    page = rewards_section(stages)
    assert '<td class="n">1.500</td><td class="n">19.500</td><td class="n">90 %</td>' in page
    assert "<script" not in page
    assert page.count("<h3>") == 0
    curves = training_section(stages)
    assert curves.index("Supervised stage") < curves.index("Self-critical stage")
    assert "held-out CIDEr-D" in curves
    assert rewards_section(stages[:1]) == training_section([]) == ""


# --- greedy and sampled captions


def test_samples_are_those_of_the_engine_scored_like_the_evaluation(tiny_processor, images):
    model = build_model(tiny_processor)
    corpus = golden_corpus(images)
    sampling = Sampling(3, max_new_tokens=6)
    found = sample_captions(model, tiny_processor, corpus, [0, 3], "caption en", sampling, seed=1)
    prompts = PromptEncoder.of(tiny_processor).prompt_batch(
        [corpus.images[i] for i in (0, 3)], ["caption en"] * 2
    )
    policy = policy_for(model.eval(), tiny_processor)
    greedy = greedy_captions(policy, tiny_processor, prompts, max_new_tokens=6, min_new_tokens=1)
    assert [each.greedy for each in found] == [text for text, *_ in greedy]
    assert [each.index for each in found] == [0, 3]
    assert all(len(each.samples) == len(each.scores) == 3 for each in found)
    parts = sample_captions(
        model, tiny_processor, corpus, [0, 3], "caption en", sampling, seed=1, batch_size=1
    )
    assert parts == found, "one image at a time draws the same"
    other = sample_captions(model, tiny_processor, corpus, [0, 3], "caption en", sampling, seed=2)
    assert [each.samples for each in other] != [each.samples for each in found]


def test_scores_of_samples_use_the_document_frequencies_of_the_evaluation(images, monkeypatch):
    """A greedy caption gets the score that it has in the evaluation, not that of a corpus of two images."""
    from scst.evaluation import samples

    corpus = golden_corpus(images)
    expected = METRICS["cider_d"].score(corpus).per_caption
    (first, second) = samples._scored(
        corpus, [0, 4], [[CAPTIONS[0], CAPTIONS[2]], [CAPTIONS[4], CAPTIONS[4]]]
    )
    assert (first.greedy_score, second.greedy_score) == pytest.approx((expected[0], expected[4]), abs=1e-12)
    assert second.scores == [second.greedy_score]
    alone = METRICS["cider_d"].score(Corpus([CAPTIONS[0]], REFERENCES[:1])).per_caption[0]
    assert abs(alone - expected[0]) > 0.1, "the wrong table would show"


def test_samples_are_drawn_as_in_training(tmp_path):
    (*_, scst) = training_stages(both_stages(tmp_path))
    sampling = training_sampling(scst.recipe, max_new_tokens=2, min_new_tokens=5)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_new_tokens) == (0.7, 9, 1.0, 2)
    assert training_sampling({}, max_new_tokens=9, min_new_tokens=1).temperature == 1
    assert spread_indices(10, 4) == [0, 2, 5, 7]
    assert spread_indices(2, 4) == [0, 1]


# --- another evaluation


def test_the_comparison_is_the_paired_bootstrap(tmp_path, images):
    before, now = list(reversed(CAPTIONS[:5])), list(CAPTIONS[:5])
    rows = [
        {"image_id": i, "caption": c, "references": r}
        for i, c, r in zip(IDS, before, REFERENCES[:5], strict=True)
    ]
    write_jsonl(rows[::-1], tmp_path / "predictions.jsonl")  # in another order
    other = other_evaluation(str(tmp_path), IDS, REFERENCES[:5])
    assert other.captions == before
    corpus = replace(golden_corpus(images, now), ended_by_eos=[True] * 5)
    scores = metric_scores(corpus, [*QUALITY, "truncation_rate"])
    found = compare_with(other, "before", corpus, scores, bootstrap_samples=50)
    expected = compare_captions(golden_corpus(images, before), corpus, QUALITY, bootstrap_samples=50)
    assert found.differences == expected, "and nothing of how captions ended, which the other did not record"
    per_caption = [
        METRICS["cider_d"].score(golden_corpus(images, each)).per_caption for each in (before, now)
    ]
    assert found.changes == pytest.approx([b - a for a, b in zip(*per_caption, strict=True)], abs=1e-12)
    assert found.changes[2] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"references": [["another"]] * 5}, "scored against other references: 5 images differ"),
        ({"image_id": [*IDS[:4], "img_9"]}, "not about the same images"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_captioning(dataset, tmp_path, changed, message):
    columns = {"image_id": dataset["image_id"][:], "references": dataset["references"][:]} | changed
    rows = [
        {"image_id": image_id, "caption": "a road", "references": references}
        for image_id, references in zip(columns["image_id"], columns["references"], strict=True)
    ]
    write_jsonl(rows, tmp_path / "predictions.jsonl")
    with pytest.raises(DataError, match=message):
        evaluate(None, None, dataset, output_dir=tmp_path / "out", compare_with=str(tmp_path), **SETTINGS)
    with pytest.raises(RecipeError, match="report_samples: expected 0"):
        evaluate(None, None, dataset, output_dir=tmp_path / "out", report_samples=-1, **SETTINGS)


# --- the page


def test_metrics_that_rank_captions(images):
    metrics = ["length", "bleu_1", "bleu_4", "rouge_l", "cider_d", "vocabulary"]
    results = metric_results(metric_scores(golden_corpus(images), metrics), 5, bootstrap_samples=2)
    # CIDEr-D first; BLEU-1 says less than BLEU-4, the length nothing, the vocabulary is of the whole set
    assert rankings(results) == ["cider_d", "bleu_4", "rouge_l"]
    assert rankings({name: results[name] for name in ("length", "bleu_1")}) == ["bleu_1"]


class ManyImages:
    """Large noisy pictures, the worst case for JPEG; remembers which were read."""

    def __init__(self):
        self.read = set()

    def __getitem__(self, index):
        self.read.add(index)
        return Image.effect_noise((224, 224), 90).convert("RGB")


def test_the_page_stays_small_with_4000_images():
    count, pictures = 4000, ManyImages()
    captions = [f"{CAPTIONS[i % 5]} {i}" for i in range(count)]
    references = [REFERENCES[i % 5] for i in range(count)]
    ids = [str(i) for i in range(count)]
    corpus = Corpus(captions, references, pictures, ids, [True] * count)
    scores = metric_scores(corpus, QUALITY)
    results = metric_results(scores, count, bootstrap_samples=2)
    page = report_html(Report("t", "s", corpus, results))
    assert len(page) < 3_000_000
    assert len(pictures.read) <= 3 * 12 + 40
    assert page.count("<img") <= 3 * 12 + 40


@pytest.fixture(scope="module")
def page_file(tiny_processor, dataset, tmp_path_factory):
    """The report of an evaluation that has everything, with hostile texts wherever texts come from."""
    folder = tmp_path_factory.mktemp("report")
    adapter = both_stages(folder)
    captions = [HOSTILE, "a road with a", *CAPTIONS[:3]]
    spoken = [Caption(text, i != 1, 5) for i, text in enumerate(captions)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "caption_images", lambda *args, **settings: spoken[::-1])
        shared = SETTINGS | {"console": Console(file=io.StringIO())}
        evaluate(None, None, dataset, output_dir=folder / "before", **shared)
        patch.setattr(evaluation, "caption_images", lambda *args, **settings: spoken)
        evaluate(
            build_model(tiny_processor),
            tiny_processor,
            dataset,
            output_dir=folder / "now",
            title=f"{HOSTILE} {LONG}",
            adapter=str(adapter),
            report_samples=3,
            compare_with=str(folder / "before"),
            **shared,
        )
    return folder / "now" / "report.html"


SECTIONS = [
    "metrics",
    "comparison",
    "best-and-worst-captions",
    "greedy-and-sampled-captions",
    "bad-endings",
    "words-per-caption",
    "learning-curves",
    "rewards",
    "captions",
]


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_report_in_a_browser(browser, page_file, size):
    with OpenPage(browser, page_file, size) as opened:
        opened.check()
        assert opened.page.eval_on_selector_all("section", "all => all.map(s => s.id)") == SECTIONS
        assert opened.count("section") == len(SECTIONS)
        assert opened.page.title() == f"{HOSTILE} {LONG}", "shown, not run"
        assert opened.page.locator("script").count() == 0
        assert opened.page.locator(".pair").count() == 3
        assert opened.page.locator("#learning-curves svg").count() >= 3
        for _ in range(2):
            assert opened.contrast() > 12
            assert opened.contrast(".soft") > 4.5, "WCAG AA"
            opened.in_the_dark()
        sizes = "e => [e.scrollWidth, e.clientWidth]"
        inside, box = opened.page.eval_on_selector("#captions .scroll", sizes)
        assert (inside > box) == (size == PHONE), "a wide table scrolls in its own box"


def test_tapping_a_metric_shows_its_captions(browser, page_file):
    section = "#best-and-worst-captions"
    with OpenPage(browser, page_file) as opened:
        page = opened.page
        first = page.locator(f"{section} .panels > div").filter(visible=True)
        assert first.count() == 1
        before = first.inner_text()
        page.locator(f"{section} label", has_text="BLEU-4").tap()
        assert page.locator(f"{section} .panels > div").filter(visible=True).count() == 1
        assert page.locator(f"{section} .panels > div").nth(1).is_visible()
        assert page.locator(f"{section} .panels > div").nth(1).inner_text() != before
        opened.check()
        page.locator("#comparison label", has_text="fallen most").tap()
        assert page.locator("#comparison .panels > div").nth(1).is_visible()
        page.locator("nav a", has_text="Rewards").tap()
        assert page.evaluate("location.hash") == "#rewards"
        opened.check()


def test_sections_without_content_are_left_out(images):
    corpus = golden_corpus(images)
    results = metric_results(metric_scores(corpus, ["cider_d"]), 5, bootstrap_samples=2)
    page = report_html(Report("t", "s", corpus, results))
    assert [name for name in SECTIONS if f'<section id="{name}"' in page] == [
        "metrics",
        "best-and-worst-captions",
        "bad-endings",
        "words-per-caption",
        "captions",
    ]
    drawn = [ScoredSamples(0, "a", 1.0, ["b", "b", "<i>"], [0.5, 0.5, 2.0])]
    page = report_html(Report("t", "s", corpus, results, samples=drawn, sampled_from="3 samples"))
    # greedy 1; (0.5 + 0.5 + 2) / 3 = 1; the best 2
    assert "greedy 1.000, sampled 1.000, the best sample of each image 2.000" in page
    assert page.index("&lt;i&gt;") < page.index("b (×2)"), "the best first"


def test_bad_endings_are_counted_and_marked(images):
    corpus = replace(golden_corpus(images), ended_by_eos=[True, False, True, True, True])
    results = metric_results(metric_scores(corpus, ["cider_d"]), 5, bootstrap_samples=2)
    page = report_html(Report("t", "s", corpus, results))
    # only the second of the five golden captions: "... in a residential area with a"
    assert "1 of 5 captions (20.0 %)" in page
    assert "residential area with <mark>a</mark>" in page
    assert "img_1, cut by the length limit" in page
    assert "The length limit cut 1 captions" in page
