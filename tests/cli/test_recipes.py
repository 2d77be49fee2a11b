"""Every YAML under recipes/ loads in its own config class and opens with a launch command that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scst.adapters.lora import LORA_TARGETS
from scst.config.packaged import find_recipe
from scst.config.reader import build_recipe, read_recipe_file, resolved
from scst.config.recipes import RECIPES
from tests.support.paths import ROOT
from tests.support.recipes import RECIPES_FOLDER, name_of, stage_of

DEVICES = sorted((RECIPES_FOLDER / "accelerate").glob("*.yaml"))
PARTS = sorted(RECIPES_FOLDER.rglob("_*.yaml"))
"""What other recipes extend; no recipes by themselves."""
STAGE_RECIPES = sorted(set(RECIPES_FOLDER.rglob("*.yaml")) - set(DEVICES) - set(PARTS))
REPORTS = {
    "prompts-and-decodings",
    "rank-and-projector",
    "qlora-to-scst",
    "adapter-kinds",
    "cleaning-and-rank",
}


def header_of(path: Path) -> str:
    """The comment lines at the top of a file, continuation lines joined."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [
        line.removeprefix("#") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]
    ]
    return re.sub(r"\\\n\s*", "", "\n".join(comments))


def launch_commands(path: Path) -> list[str]:
    return [
        line.strip()
        for line in header_of(path).splitlines()
        if re.match(r"\s+([A-Z_]+=\S* )*(accelerate launch|python) ", line)
    ]


def test_the_folder_is_not_empty():
    folders = {path.parent.name for path in STAGE_RECIPES}
    assert folders >= {"quickstart", "rsicd", "paligemma", "experiments", *REPORTS}
    devices = {"cpu", "cpu-2", "gpu", "ddp", "zero2", "zero3", "fsdp2", "multi-node"}
    assert {path.stem for path in DEVICES} == devices


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_part_is_extended_by_some_recipe(path):
    assert any(path.name in str(yaml.safe_load(p.read_text()).get("extends")) for p in STAGE_RECIPES)


@pytest.mark.parametrize("path", STAGE_RECIPES, ids=name_of)
def test_recipe_loads_in_its_own_class(path):
    settings = read_recipe_file(path)
    recipe = build_recipe(stage_of(path), settings)
    everything = resolved(recipe)
    assert {name: everything[name] for name in settings} == settings


def test_no_two_recipes_write_into_one_folder():
    recipes = [build_recipe(stage_of(path), read_recipe_file(path)) for path in STAGE_RECIPES]
    folders = [recipe.output_dir for recipe in recipes if not hasattr(recipe, "output")]
    assert len(set(folders)) == len(folders)
    assert "outputs/run" not in folders, "the default folder"


@pytest.mark.parametrize("path", STAGE_RECIPES, ids=name_of)
def test_resolved_recipe_round_trips(path):
    recipe = build_recipe(stage_of(path), read_recipe_file(path))
    printed = yaml.safe_load(yaml.safe_dump(resolved(recipe), sort_keys=False))
    assert build_recipe(stage_of(path), printed) == recipe


@pytest.mark.parametrize("path", [p for p in STAGE_RECIPES if "sft" in p.stem], ids=name_of)
def test_lora_targets_is_a_known_preset(path):
    assert build_recipe("sft", read_recipe_file(path)).lora_targets in LORA_TARGETS


@pytest.mark.parametrize("path", STAGE_RECIPES, ids=name_of)
def test_recipe_opens_with_its_launch_command(path):
    commands = launch_commands(path)
    assert commands, f"{name_of(path)}: no launch command in the first lines"
    script = f"launch/{stage_of(path)}.py"
    if name := re.search(
        r"^#   scst (\w+) .*--config (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert name[1] == RECIPES[stage_of(path)].command
        assert find_recipe(name[2]) == path
    assert (ROOT / script).is_file()
    assert any(script in command and f"--config {name_of(path)}" in command for command in commands)
    named = [RECIPES_FOLDER.parent / config for c in commands for config in re.findall(r"--config (\S+)", c)]
    assert all(config in STAGE_RECIPES for config in named)


@pytest.mark.parametrize("path", sorted((RECIPES_FOLDER / "paligemma").glob("*.yaml")), ids=name_of)
def test_recipe_states_what_to_expect(path):
    header = header_of(path)
    assert "published:" in header
    assert "not run here" in header


@pytest.mark.parametrize("path", [p for p in STAGE_RECIPES if "scst" in p.stem], ids=name_of)
def test_second_stage_continues_the_first(path):
    """The adapter is the output of the recipe beside it; model, data, prompt and splits are the same."""
    second = build_recipe("scst", read_recipe_file(path))
    first = build_recipe("sft", read_recipe_file(path.with_name(path.name.replace("scst", "sft"))))
    assert second.adapter == first.output_dir
    shared = (
        "model_name_or_path",
        "dataset",
        "prompt",
        "split_fractions",
        "split_seed",
        "train_split",
        "eval_split",
    )
    assert {name: getattr(second, name) for name in shared} == {name: getattr(first, name) for name in shared}


@pytest.mark.parametrize("path", DEVICES, ids=name_of)
def test_device_config_loads_in_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.mixed_precision == "no", "precision belongs to the recipe"


@pytest.mark.parametrize("path", DEVICES, ids=name_of)
def test_device_config_opens_with_a_command_that_exists(path):
    (command,) = launch_commands(path)
    assert f"--config_file {name_of(path)}" in command
    script, recipe = re.search(r"(launch/\w+\.py) --config (\S+)", command).groups()
    assert (ROOT / script).is_file()
    assert (ROOT / recipe) in STAGE_RECIPES
