"""Before training a model's own forward pass is compared with ours, which misses every rule of a family."""

from __future__ import annotations

import pytest
import torch

from scst.data.collate import SCSTCollator
from scst.errors import ScstError
from scst.models.masks import AttentionMask
from scst.training.forward_check import check_forward
from tests.support import families
from tests.support.stages import run_recipe
from tests.support.tiny import SENTENCES
from tests.support.worlds import tiny_run, write_risc


def checked(world):
    rows = [
        {"image": image, "references": [sentence]}
        for image, sentence in zip(world.images, SENTENCES, strict=False)
    ]
    return check_forward(world.model, SCSTCollator(world.encoder, "describe this image"), rows)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_passes(name, precision):
    world = families.make_world(name)
    world.model.to(precision)
    gap = checked(world)
    assert gap.relative < gap.limit / 3, "the limit leaves room"


@pytest.mark.parametrize("rule", families.RULES)
def test_a_family_without_its_rule_is_refused(monkeypatch, rule):
    name, method, usual, _ = families.RULES[rule]
    world = families.make_world(name)
    monkeypatch.setattr(type(world.encoder.family), method, usual)
    with pytest.raises(ScstError, match="the forward pass of this project and the model's own differ by"):
        checked(world)


def test_a_window_that_is_forgotten_is_refused(monkeypatch):
    monkeypatch.setattr(AttentionMask, "sliding", lambda mask, window, cuts_blocks: mask.full)
    with pytest.raises(ScstError, match=r"model_type 'gemma3'\) is not computed right"):
        checked(families.make_world("gemma3"))


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_nothing_is_trained_or_moved_aside(monkeypatch, stage, tmp_path):
    """The run ends before an earlier one in its folder is touched."""
    world = families.make_world("paligemma")
    for part in (world.model, world.processor):
        part.save_pretrained(tmp_path / "model")
    write_risc(tmp_path / "data")
    sft = str(tmp_path / "sft")
    run_recipe("sft", tiny_run(tmp_path, output_dir=sft, max_steps=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sft").rglob("*")}
    monkeypatch.setattr(type(world.encoder.family), "block_ids", families.RULES["a bidirectional prompt"][2])
    keys = {"output_dir": sft, "max_steps": 1, "overwrite": True}
    if stage == "scst":
        keys |= {"adapter": sft, "output_dir": str(tmp_path / "scst"), "num_samples": 2}
    with pytest.raises(ScstError, match="nothing was trained"):
        run_recipe(stage, tiny_run(tmp_path, **keys))
    left = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "sft").rglob("*") if path.name != ".run.lock"
    }
    assert left.items() <= before.items()
    assert not list((tmp_path / "scst").glob("*.json"))
