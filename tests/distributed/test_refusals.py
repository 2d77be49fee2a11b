"""Combinations that cannot work are refused before a model is loaded, with what to do instead."""

from __future__ import annotations

import pytest

from scst.adapters.lora import add_lora
from scst.config import devices
from scst.config.reader import build_recipe
from scst.errors import RecipeError
from scst.rl.policy_loss import ScoringSettings
from scst.rl.trainer import refuse_what_cannot_work
from tests.support.processes import device_config, environment_of


@pytest.fixture
def launched(monkeypatch):
    """As if the launcher had been given a device configuration."""

    def launch(name):
        for key, value in environment_of(device_config(name)).items():
            monkeypatch.setenv(key, value)

    return launch


def test_fsdp2_divides_no_quantised_weights(launched):
    launched("fsdp2")
    for quantization in ("nf4", "8bit"):
        with pytest.raises(RecipeError, match=f"quantization: {quantization} .*zero3.yaml"):
            devices.check_devices(build_recipe("sft", {"quantization": quantization}))
    devices.check_devices(build_recipe("sft", {"quantization": "none"}))


def test_fsdp1_is_refused(launched, monkeypatch):
    launched("fsdp2")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(RecipeError, match="FSDP 1"):
        devices.check_devices(build_recipe("sft", {"quantization": "none"}))


@pytest.mark.parametrize(("config", "refused"), [("zero2", False), ("zero3", True), ("fsdp2", True)])
def test_recorded_steps_need_weights_that_stay_in_place(launched, config, refused):
    launched(config)
    recipe = build_recipe("scst", {"cuda_graphs": True, "quantization": "none"})
    if refused:
        with pytest.raises(RecipeError, match="cuda_graphs"):
            devices.check_devices(recipe)
    else:
        devices.check_devices(recipe)


@pytest.mark.parametrize(("targets", "refused"), [("decoder-attention", False), ("full", True)])
def test_vision_adapters_under_fsdp2(launched, tiny_model, targets, refused):
    launched("fsdp2")
    model = add_lora(tiny_model, targets=targets, rank=2, alpha=4)
    if refused:
        with pytest.raises(RecipeError, match="vision tower or the projector"):
            refuse_what_cannot_work(model, ScoringSettings())
    else:
        refuse_what_cannot_work(model, ScoringSettings())


@pytest.mark.parametrize(
    ("config", "keys", "message"),
    [
        ("zero2", {}, "zero3.yaml"),
        ("zero3", {"eval_strategy": "steps"}, "eval_strategy: no"),
        ("zero3", {"feature_cache": "folder"}, "feature_cache: off"),
        ("zero3", {}, None),
    ],
    ids=["weights are whole", "evaluates", "caches features", "possible"],
)
def test_streamed_weights(launched, config, keys, message):
    launched(config)
    recipe = build_recipe("scst", {"rollout_weights": "streamed", **keys})
    if message is None:
        devices.check_devices(recipe)
    else:
        with pytest.raises(RecipeError, match=message):
            devices.check_devices(recipe)
