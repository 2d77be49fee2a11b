"""From one picture to the files, on a tiny model; and the command line as a user starts it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from scst.adapters.lora import add_lora
from scst.cli.explain import main
from scst.config.reader import read_recipe_file
from scst.explain.explanation import METHODS, Settings, explain_caption
from scst.explain.explanation_files import explanation_record, write_overlays
from scst.explain.explanation_page import explanation_page, times
from scst.explain.overlay import AGAINST, FOR, LONGEST_SIDE, overlay
from scst.models.pretrained import load_model
from tests.support.browser import OpenPage
from tests.support.worlds import write_model, write_recipe

CAPTION = "two planes <b>are</b> near a road"
KEYS = {"quantization": "none", "precision": "fp32", "max_new_tokens": 6}
KEYS |= {"num_segments": 6, "shap_permutations": 1, "ig_steps": 2, "curve_steps": 2}
FEW = Settings(num_segments=6, permutations=1, ig_steps=2, curve_steps=3)


@pytest.fixture(scope="module")
def explanation(request):
    from tests.support.tiny import build_model, build_processor, noise_images

    processor = build_processor()
    model = build_model(processor).requires_grad_(False)
    image = noise_images(1)[0]
    found = explain_caption(
        model, processor, image, CAPTION, prompt="caption en", max_new_tokens=40, settings=FEW, label="tiny"
    )
    return found, model, processor, image


def test_every_method_has_a_map_of_every_target(explanation):
    found = explanation[0]
    assert list(found.heat) == list(METHODS)
    assert found.targets == list(range(7)), "the whole caption and six words"
    for maps in found.heat.values():
        assert {each.shape for each in maps.values()} == {(32, 32)}
        assert all(np.isfinite(each).all() for each in maps.values())
    assert set(found.curves) == set(METHODS)
    assert set(found.completeness) == set(found.targets)


def test_paligemma_2_is_explained_too(tiny_processor, tiny_model_v2, images):
    """Its attention is eager and its logits may be capped."""
    model = tiny_model_v2.requires_grad_(False)
    found = explain_caption(
        model, tiny_processor, images[1], "a river", prompt="caption en", max_new_tokens=40, settings=FEW
    )
    assert set(found.heat) == set(METHODS)
    assert all(np.isfinite(each).all() for maps in found.heat.values() for each in maps.values())
    np.testing.assert_allclose(found.heat["shap"][0].sum(), found.gains[0], atol=1e-3)


def test_the_same_seed_gives_the_same_maps(explanation):
    found, model, processor, image = explanation
    again = explain_caption(
        model, processor, image, CAPTION, prompt="caption en", max_new_tokens=40, settings=FEW, word="road"
    )
    assert again.targets == [0, 6]
    assert again.focus == 6
    for method, maps in again.heat.items():
        for which in (0, 6):
            np.testing.assert_array_equal(maps[which], found.heat[method][which], err_msg=method)


def test_the_main_region_is_the_fewest_segments_with_half_of_the_mass(explanation):
    found = explanation[0]
    for which in found.targets:
        mass = np.clip(found.importance["shap"][which], 0, None) * np.bincount(found.segments.ravel())
        inside = np.unique(found.segments[found.main_region(which)])
        assert mass[inside].sum() >= 0.5 * mass.sum()
        assert len(inside) == 0 or np.delete(mass[inside], mass[inside].argmin()).sum() < 0.5 * mass.sum()


class _Tags(HTMLParser):
    """Collects tags; unclosed ones are what is left on the stack."""

    def __init__(self):
        super().__init__()
        self.stack, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "path", "polyline", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "polyline"):
            assert self.stack.pop() == tag


def test_the_page_is_whole_and_alone(explanation):
    found, _, _, image = explanation
    page = explanation_page("title <x>", "subtitle", image, [found, found])
    tags = _Tags()
    tags.feed(page)
    assert tags.stack == []
    assert "<b>are</b> near" not in page, "captions are escaped"
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing outside of the file"
    inputs = [attributes for tag, attributes in tags.attributes if tag == "input"]
    labels = [attributes["for"] for tag, attributes in tags.attributes if tag == "label"]
    assert [each["id"] for each in inputs] == labels, "every word has its button"
    assert len(set(labels)) == len(labels) == 2 * len(found.targets)
    assert page.count('<div class="view">') == len(labels)
    assert 'name="viewport"' in page


def test_ratios_are_written_for_people():
    assert [times(gain) for gain in (-4, 0, 0.963, 9.33, 27.6)] == ["0.0183", "1", "2.62", "11,300", "10^12"]


def test_an_overlay_shows_for_against_and_the_region():
    heat = np.zeros((8, 8))
    heat[:4], heat[4:] = 1.0, -1.0
    region = np.zeros((8, 8), dtype=bool)
    region[2:6, 2:6] = True
    picture = overlay(Image.new("RGB", (64, 32), (100, 100, 100)), heat, region)
    assert picture.size == (LONGEST_SIDE, LONGEST_SIDE // 2), "the picture's own shape"
    top, bottom = np.array(picture.getpixel((5, 5))), np.array(picture.getpixel((5, 215)))
    np.testing.assert_allclose(top, 0.2 * 100 + 0.8 * np.array(FOR), atol=2)
    np.testing.assert_allclose(bottom, 0.2 * 100 + 0.8 * np.array(AGAINST), atol=2)
    assert (np.asarray(picture) == 255).all(-1).any(), "a white line"
    blank = overlay(Image.new("RGB", (8, 8), (100, 100, 100)), np.zeros((8, 8)))
    assert (np.asarray(blank) == 100).all(), "a map of nothing changes nothing"


def test_the_page_on_a_phone(explanation, browser, tmp_path):
    found, _, _, image = explanation
    file = tmp_path / "explanation.html"
    page = explanation_page("a-very-long-path/" * 10, "subtitle", image, [found, found])
    file.write_text(page, encoding="utf-8")
    with OpenPage(browser, file) as opened:
        opened.check()
        view = opened.page.locator(".ex").first.locator(".view").filter(visible=True)
        before = view.inner_text()
        opened.page.locator(".words label", has_text="road").first.tap()
        assert view.count() == 1
        assert view.inner_text() != before, "the word's own maps"
        opened.check()


@pytest.mark.slow
def test_files_hold_what_the_page_shows(explanation, tmp_path):
    found, _, _, image = explanation
    paths = write_overlays(tmp_path, image, found)
    assert len(paths) == 4 * 7 + 1
    assert {"shap-00-whole-caption.png", "grad_cam-06-road.png"} <= {path.name for path in paths}
    assert (np.asarray(Image.open(tmp_path / "segments.png")) == found.segments).all()
    record = json.loads(json.dumps(explanation_record(found)))
    assert [each["text"] for each in record["subjects"]][-1] == "road"
    values = np.array(record["subjects"][6]["segments"]["shap"]) * np.bincount(found.segments.ravel())
    assert values.sum() == pytest.approx(found.gains[6], abs=1e-3), (
        "Shapley values sum to what the picture adds"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from tests.support.tiny import noise_images

    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    noise_images(1, 40)[0].save(folder / "a.png")
    write_recipe(folder / "recipe.yaml", model_name_or_path=str(folder / "model"), **KEYS)
    return folder


def write_adapter(folder, model) -> None:
    """An adapter whose weights are not zero."""
    adapted = add_lora(
        load_model(str(model), quantization="none", precision="fp32"),
        targets="decoder-attention",
        rank=2,
        alpha=4,
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    adapted.save_pretrained(folder)


def call(*flags) -> int:
    return main([str(flag) for flag in flags])


def flags_of(world, *more):
    return [world / "a.png", "--config", world / "recipe.yaml", *more]


@pytest.mark.slow
def test_the_command_leaves_page_overlays_and_numbers(world, tmp_path):
    """A training recipe may be handed to it; base is compared with an adapter."""
    recipe = read_recipe_file(world / "recipe.yaml") | {"learning_rate": 1e-3, "baseline": "greedy"}
    write_recipe(world / "scst.yaml", **recipe)
    write_adapter(world / "adapter", world / "model")
    out = tmp_path / "out"
    flags = ["--adapter", world / "adapter", "--compare_adapters", "base", "--output_dir", out]
    words = ["--caption", "two planes", "--word", "planes"]
    assert call(world / "a.png", "--config", world / "scst.yaml", *flags, *words) == 0
    record = json.loads((out / "explanation.json").read_text())
    assert [each["model"] for each in record["explanations"]] == ["adapter", "base"]
    assert record["explanations"][0]["faithfulness_of"] == "planes"
    assert sorted(path.name for path in (out / "base").glob("shap-*")) == [
        "shap-00-whole-caption.png",
        "shap-02-planes.png",
    ]
    assert "two planes" in (out / "explanation.html").read_text()


def test_dry_run_loads_no_model(world, capsys, monkeypatch):
    shutil.copy(world / "a.png", world / "b.png")
    with monkeypatch.context() as patched:
        patched.setattr("scst.adapters.loaded.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
        assert call(*flags_of(world, "--dry_run")) == 0
    assert "# dataset size: 40 x 40" in capsys.readouterr().out
    assert call(*flags_of(world, "--model_name_or_path", "absent/model", "--dry_run")) == 2
    assert "no model configuration found at 'absent/model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--occlusion", "noise"], "occlusion: must be one of blur, mean, gray, black"),
        (["--methods", "shap,lime"], "methods: unknown 'lime'; known are"),
        (["--shap_permutations", "0"], "shap_permutations: expected 1 or more, got 0"),
        (["--compare_adapters", "base"], "compare_adapters: a model is named twice: base, base"),
        (["--compare_adapters", "absent"], "adapter: 'absent' holds no adapter_config.json"),
        (["--caption", "two planes", "--word", "river"], "word: the caption has no word 'river'"),
        (["--ig_stepps", "3"], "ig_stepps: unknown key; did you mean ig_steps"),
        (["second.png"], "expected one picture to explain, got 2"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_wrong_input_is_named_with_exit_code_2(more, message, world, tmp_path, capsys):
    assert call(*flags_of(world, "--output_dir", tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "explanation.json").exists()
