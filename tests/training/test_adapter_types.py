"""Both stages with every type of adapter: what changes, what is written, resuming; and the refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from scst.config import build
from scst.config.checks import check_recipe
from scst.config.reader import build_recipe
from scst.errors import RecipeError
from scst.evaluation.captioning import caption_images
from scst.models.pretrained import load_model
from tests.support.adapted import KINDS, adapted
from tests.support.stages import adapter_weights, bits, losses
from tests.support.tiny import noise_images

OWN = ("virtual_", "bottleneck_")


def trained_and_frozen(model):
    """The adapter's tensors, and the others under the names of the bare model."""
    state = model.get_base_model().state_dict()
    names = {name for name in state if any(f".{own}" in name for own in OWN)}
    frozen = {name.replace(".base_layer", ""): state[name] for name in state if name not in names}
    return {name: state[name] for name in names}, frozen


@pytest.mark.parametrize(
    ("kind", "quantization"), [*((kind, "none") for kind in KINDS), ("prefix_tuning", "nf4")]
)
def test_both_stages_change_the_adapter_only(run_stage, tmp_path, world, kind, quantization):
    """Frozen tensors stay bit for bit; the adapter moves in both stages, and captions outlive the disk."""
    sft = run_stage(
        "sft",
        output_dir=str(tmp_path / "sft"),
        quantization=quantization,
        adapter_type=kind,
        lora_rank=16,  # the default: `run_stage` gives one to LoRA
        max_steps=2,
    )
    before = {name: tensor.clone() for name, tensor in trained_and_frozen(sft.model)[0].items()}
    scst = run_stage(
        "scst",
        adapter=str(tmp_path / "sft"),
        output_dir=str(tmp_path / "scst"),
        quantization=quantization,
        kl_weight=0.05,
        max_steps=2,
    )
    after, frozen = trained_and_frozen(scst.model)
    assert set(before) == set(after)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    fresh = load_model(str(world / "model"), quantization=quantization, precision="fp32").state_dict()
    assert set(fresh) == set(frozen)
    assert all(torch.equal(bits(frozen[name]), bits(tensor)) for name, tensor in fresh.items())
    assert adapter_weights(tmp_path / "scst").keys() == adapter_weights(tmp_path / "sft").keys()
    record = json.loads((tmp_path / "scst" / "run.json").read_text())
    assert record["trainable_parameters"] == sum(tensor.numel() for tensor in after.values())

    keys = {"adapter": str(tmp_path / "scst"), "quantization": quantization, "precision": "fp32"}
    recipe = build_recipe("evaluate", keys | {"model_name_or_path": str(world / "model")})
    loaded = build.build_policy(recipe, recipe.model_name_or_path, trainable=False)
    captions = [
        [c.text for c in caption_images(model, p, noise_images(4), "caption en", "greedy", max_new_tokens=8)]
        for model, p in ((scst.model, scst.encoder), (loaded.model, loaded.encoder))
    ]
    assert captions[0] == captions[1]


def test_resumed_run_equals_uninterrupted_run(run_stage, tmp_path):
    """Bit for bit, as if the run had been killed after step 2."""
    keys = {"adapter_type": "prefix_tuning", "lora_rank": 16, "save_strategy": "steps", "save_steps": 2}
    whole = run_stage("sft", output_dir=str(tmp_path / "out"), **keys)
    expected = adapter_weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = run_stage("sft", output_dir=str(tmp_path / "out"), resume=True, **keys)
    assert losses(resumed) == losses(whole)
    actual = adapter_weights(tmp_path / "out")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_prompt_tuning_without_prompt_gradient_is_refused(tiny_model, tiny_processor, tmp_path):
    adapted("prompt_tuning", tiny_model, tiny_processor)[0].save_pretrained(tmp_path)
    keys = {"adapter": str(tmp_path), "dataset": "embedded:scenes", "prompt_gradient": False}
    recipe = build_recipe("scst", keys)
    with pytest.raises(RecipeError, match="prompt_gradient: all of the gradient of prompt tuning"):
        check_recipe(recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_divided_weights_are_refused(monkeypatch, kind):
    from scst.config import devices

    monkeypatch.setattr(devices, "uses_zero3", lambda: True)
    with pytest.raises(RecipeError, match=f"{kind} was not tested with divided weights"):
        devices.check_devices(build_recipe("sft", {"adapter_type": kind}))


def test_merge_refuses_before_a_model_is_loaded(tiny_model, tiny_processor, tmp_path, capsys):
    from scst.cli.merge import main

    adapted("prefix_tuning", tiny_model, tiny_processor)[0].save_pretrained(tmp_path)
    flags = ["--adapter", str(tmp_path), "--output_dir", str(tmp_path / "merged")]
    assert main(flags) == 2
    assert "prefix_tuning cannot be merged" in capsys.readouterr().err
    assert main([]) == 2
    assert "adapter: missing" in capsys.readouterr().err
