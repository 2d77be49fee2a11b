"""Every published training recipe runs: with a tiny model, tiny data and two steps in place of its own."""

from __future__ import annotations

import pytest

from scst.config import read_recipe_file
from tests.launch.test_systems import PUBLISHED, SYSTEMS

SMALLER = {
    "train_split": "train",
    "split_fractions": None,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 2,
    "max_new_tokens": 8,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "report_to": "none",
}
WITHOUT_A_GPU = {"fp16": "bf16"}


def settings_of(name, world, output_dir):
    recipe = read_recipe_file(SYSTEMS / f"{name}.yaml")
    model = "model2" if "paligemma2" in recipe["model_name_or_path"] else "model"
    own = {"model_name_or_path": str(world / model), "dataset": str(world / "data")}
    own["precision"] = WITHOUT_A_GPU.get(recipe["precision"], recipe["precision"])
    return recipe | SMALLER | own | {"output_dir": str(output_dir)}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("-sft")])
def test_supervised_stage_runs(run_stage, world, tmp_path, name):
    trainer = run_stage("sft", **settings_of(name, world, tmp_path / "out"))
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("-scst")])
def test_second_stage_runs(run_stage, world, tmp_path, name):
    run_stage("sft", **settings_of(name.replace("scst", "sft"), world, tmp_path / "sft"))
    keys = settings_of(name, world, tmp_path / "out") | {"adapter": str(tmp_path / "sft")}
    trainer = run_stage("scst", **keys)
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
