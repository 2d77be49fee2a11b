"""Every published training recipe runs: with a tiny model, tiny data and two steps in place of its own."""

from __future__ import annotations

import pytest

from scst.config.reader import read_recipe_file
from tests.support.recipes import REPORTS

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
NAMES = sorted(path.relative_to(REPORTS).with_suffix("").as_posix() for path in REPORTS.rglob("[!_]*.yaml"))
PUBLISHED = [name for name in NAMES if "-rsicd-" not in name]
"""Those of the reports; the variant of each for the small real model differs in size alone."""


def settings_of(name):
    """Keys of a recipe at test size; ``model`` is one of the world's."""
    recipe = read_recipe_file(REPORTS / f"{name}.yaml")
    recipe["lora_rank"] = recipe.get("lora_rank", 16)
    model = "model2" if "paligemma2" in recipe["model_name_or_path"] else "model"
    own = {"model_name_or_path": model, "dataset": "data"}
    own["precision"] = WITHOUT_A_GPU.get(recipe["precision"], recipe["precision"])
    return recipe | SMALLER | own


def distinct(stage):
    """Recipes of a stage; of those that differ in their checkpoint alone the first."""
    found = {}
    for name in (name for name in PUBLISHED if name.endswith(f"-{stage}")):
        settings = {k: v for k, v in settings_of(name).items() if k not in ("output_dir", "adapter")}
        found.setdefault(str(sorted(settings.items())), name)
    return list(found.values())


def run(run_stage, stage, name, world, output_dir, **keys):
    settings = settings_of(name) | {"output_dir": str(output_dir)} | keys
    places = {key: str(world / settings[key]) for key in ("model_name_or_path", "dataset")}
    if stage == "scst":
        del settings["lora_rank"]
    return run_stage(stage, **settings | places)


def test_checkpoints_are_all_that_is_left_out():
    assert len(distinct("sft")) == len([name for name in PUBLISHED if name.endswith("-sft")]) - 3
    assert distinct("scst") == ["qlora-to-scst/base-r16-scst"]


@pytest.mark.parametrize("name", distinct("sft"))
def test_supervised_stage_runs(run_stage, world, tmp_path, name):
    trainer = run(run_stage, "sft", name, world, tmp_path / "out")
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", distinct("scst"))
def test_second_stage_runs(run_stage, world, tmp_path, name):
    run(run_stage, "sft", name.removesuffix("scst") + "sft", world, tmp_path / "sft")
    trainer = run(run_stage, "scst", name, world, tmp_path / "out", adapter=str(tmp_path / "sft"))
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
