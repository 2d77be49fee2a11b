"""Recipe keys: types, choices, keys of other stages, typos, and the names taken from transformers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from scst.cli.arguments import parse
from scst.config import renamed_keys
from scst.config.keys import default_of
from scst.config.reader import (
    build_recipe,
    read_recipe_file,
    resolved,
)
from scst.config.recipes import RECIPES, SCSTRecipe
from scst.errors import RecipeError
from scst.training.arguments.argument_checks import argument_names
from scst.training.arguments.argument_table import OWNED
from tests.support.paths import ROOT

TRAINING_STAGES = ["sft", "scst"]


def message_of(stage: str, **settings) -> str:
    with pytest.raises(RecipeError) as caught:
        build_recipe(stage, settings)
    return str(caught.value)


# --- unknown keys


@pytest.mark.parametrize(
    ("stage", "typo", "meant"),
    [
        ("sft", "lora_rnak", "lora_rank"),
        ("sft", "learning_rte", "learning_rate"),
        ("scst", "num_sample", "num_samples"),
        ("scst", "basline", "baseline"),
        ("evaluate", "metric", "metrics"),
        ("caption", "promt", "prompt"),
    ],
)
def test_typo_is_refused_with_what_was_meant(stage, typo, meant):
    message = message_of(stage, **{typo: 1})
    assert message.startswith(f"{typo}: unknown key; did you mean ")
    assert meant in message


def test_unknown_key_without_likeness_points_to_help():
    assert message_of("sft", zzzzqqqq=1) == "zzzzqqqq: unknown key; see scst sft --help"


@pytest.mark.parametrize(
    ("stage", "name", "owner"),
    [
        ("sft", "num_samples", "rl"),
        ("sft", "decoding", "evaluate"),
        ("scst", "lora_rank", "sft"),
        ("scst", "output", "caption"),
    ],
)
def test_key_of_another_stage_names_that_stage(stage, name, owner):
    command = RECIPES[stage].command
    assert message_of(stage, **{name: 1}) == f"{name}: a key of `scst {owner}`, not of `scst {command}`"


@pytest.mark.parametrize("stage", TRAINING_STAGES)
@pytest.mark.parametrize("name", OWNED)
def test_training_argument_that_the_project_sets_is_refused(stage, name):
    message = message_of(stage, **{name: True})
    assert message.startswith(f"{name}: not a recipe key")
    assert OWNED[name] in message


@pytest.mark.parametrize("stage", ["evaluate", "caption"])
def test_other_stages_pass_over_training_keys(stage):
    """A training recipe may be handed to them as it is; what no stage knows is an error there too."""
    training = read_recipe_file(ROOT / "recipes" / "quickstart" / "scst.yaml")
    recipe = build_recipe(stage, training)
    assert recipe.prompt == training["prompt"]
    assert not set(resolved(recipe)) & {"num_samples", "learning_rate", "max_steps"}
    assert "learning_rate" in message_of(stage, **training, learning_rte=1.0)


# --- names of earlier releases


def test_a_renamed_key_is_read_with_a_warning(capsys):
    renamed_keys._warn.cache_clear()
    recipe = build_recipe("scst", {"late_rollouts": True, "rollout_weights": "whole"})
    assert recipe == build_recipe("scst", {"one_step_off_policy": True, "rollout_weights": "unsharded"})
    build_recipe("scst", {"late_rollouts": True})
    assert capsys.readouterr().err.splitlines() == [
        "warning: late_rollouts is now called one_step_off_policy; this release still reads the old name",
        "warning: rollout_weights: whole is now called unsharded; this release still reads the old name",
    ]


def test_a_flag_overrides_a_file_that_uses_the_old_name(tmp_path):
    (tmp_path / "old.yaml").write_text("late_rollouts: true\nadapter: a\ndataset: d\n")
    flags = ["--config", str(tmp_path / "old.yaml")]
    assert parse(SCSTRecipe, flags).recipe.one_step_off_policy is True
    for name in ("late_rollouts", "one_step_off_policy"):
        assert parse(SCSTRecipe, [*flags, f"--{name}", "false"]).recipe.one_step_off_policy is False


def test_a_key_under_both_names_is_refused():
    message = message_of("scst", late_rollouts=True, one_step_off_policy=False)
    assert message == "one_step_off_policy: given twice, also by its old name late_rollouts"


@pytest.mark.parametrize("name", renamed_keys.REMOVED_KEYS)
def test_a_removed_key_says_what_to_do(name):
    message = message_of("scst", **{name: "local"})
    assert message.startswith(f"{name}: removed from recipes: ")
    assert "delete the key" in message


def test_renamed_names_exist():
    keys = {f.name: f for recipe in RECIPES.values() for f in dataclasses.fields(recipe)}
    assert set(renamed_keys.RENAMED_KEYS.values()) <= set(keys)
    assert not (set(renamed_keys.RENAMED_KEYS) | set(renamed_keys.REMOVED_KEYS)) & set(keys)
    for name, values in renamed_keys.RENAMED_VALUES.items():
        assert set(values.values()) <= set(keys[name].metadata["choices"])
        assert not set(values) & set(keys[name].metadata["choices"])


# --- values


@pytest.mark.parametrize(
    ("stage", "name", "text", "value"),
    [
        ("sft", "lora_alpha", "1e-5", 1e-5),
        ("sft", "lora_alpha", 32, 32.0),
        ("sft", "lora_rank", "16", 16),
        ("sft", "lora_rank", 16.0, 16),
        ("scst", "temperature", "1", 1.0),
        ("scst", "kl_weight", "1e-2", 0.01),
        ("sft", "max_train_images", None, None),
        ("sft", "max_train_images", "100", 100),
        ("sft", "resume", True, True),
        ("sft", "resume", "outputs/run/checkpoint-5", "outputs/run/checkpoint-5"),
        ("sft", "adapter", None, None),
    ],
)
def test_value_takes_the_type_of_its_key(stage, name, text, value):
    converted = getattr(build_recipe(stage, {name: text}), name)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("max_steps", "16", 16),
        ("num_train_epochs", "0.5", 0.5),
        ("eval_strategy", False, "no"),  # what YAML makes of a bare `no`
        ("save_strategy", False, "no"),
        ("eval_strategy", "steps", "steps"),
        ("gradient_checkpointing", False, False),
        ("optim", "adamw_8bit", "adamw_8bit"),
    ],
)
def test_training_argument_takes_its_type(name, text, value):
    converted = build_recipe("sft", {name: text}).training[name]
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("stage", "name", "value", "expected"),
    [
        ("sft", "lora_rank", "sixteen", "expected int, got 'sixteen'"),
        ("sft", "lora_rank", 16.5, "expected int, got 16.5"),
        ("sft", "lora_rank", True, "expected int, got True"),
        ("sft", "prompt", 5, "expected str, got 5"),
        ("sft", "max_train_images", "many", "expected int or nothing, got 'many'"),
        ("sft", "overwrite", "yes please", "expected bool, got 'yes please'"),
        ("scst", "rewards", 3, "expected list, got 3"),
        ("scst", "temperature", None, "expected float, got None"),
    ],
)
def test_wrong_value_names_key_expectation_and_value(stage, name, value, expected):
    assert message_of(stage, **{name: value}) == f"{name}: {expected}"


CHOICE_KEYS = [
    pytest.param(stage, f.name, f.metadata["choices"], id=f"{stage}-{f.name}")
    for stage, recipe in RECIPES.items()
    for f in dataclasses.fields(recipe)
    if f.metadata.get("choices")
]


NEEDED_BY = {
    "prompt_init": {"adapter_type": "prompt_tuning"},
    "bottleneck_places": {"adapter_type": "bottleneck"},
}


@pytest.mark.parametrize(("stage", "name", "choices"), CHOICE_KEYS)
def test_choices(stage, name, choices):
    takes_several = isinstance(default_of(RECIPES[stage], name), list)
    for choice in choices:
        value = [choice] if takes_several else choice
        assert getattr(build_recipe(stage, NEEDED_BY.get(name, {}) | {name: value}), name) == value
    message = message_of(stage, **{name: "nonsense"})
    assert message.startswith(f"{name}: ")
    assert ", ".join(choices) in message


@pytest.mark.parametrize("stage", RECIPES)
def test_defaults_round_trip_and_are_not_shared(stage):
    recipe = build_recipe(stage, {})
    assert build_recipe(stage, resolved(recipe)) == recipe
    for name, value in resolved(recipe).items():
        if isinstance(value, list):
            getattr(recipe, name).append("changed")
            assert "changed" not in getattr(build_recipe(stage, {}), name)


# --- names of transformers.TrainingArguments


def test_accepted_training_arguments_are_those_of_the_installed_class():
    from transformers import TrainingArguments

    fields = {f.name for f in dataclasses.fields(TrainingArguments) if f.init and not f.name.startswith("_")}
    assert set(argument_names()) == fields


def test_owned_training_arguments_name_existing_keys():
    keys = {f.name for recipe in RECIPES.values() for f in dataclasses.fields(recipe)}
    assert {text.split("`")[1] for text in OWNED.values() if text.startswith("use `")} <= keys


# --- files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- prompt\n- caption en\n", "must hold `key: value` lines, got a list"),
        (b"prompt: [unclosed\n", "is no readable YAML (line 2): "),
        (b"prompt: caf\xe9\n", "expected UTF-8 text"),
    ],
    ids=["list", "broken", "latin-1"],
)
def test_file_that_is_no_recipe(tmp_path, content, expected):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"^--config: ") as caught:
        read_recipe_file(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match=r"^--config: there is no file "):
        read_recipe_file(tmp_path / "none.yaml")


def test_empty_file_is_an_empty_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing yet\n")
    assert read_recipe_file(path) == {}


def test_a_recipe_extends_others_the_last_counts_most(tmp_path):
    """a: 1, 1, 1; b over a: 1, 2, 2; c over b: 1, 2, 3. Paths are relative to the file that names them."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text("lora_rank: 1\nlora_alpha: 1\nlora_dropout: 1\n")
    (tmp_path / "deep" / "b.yaml").write_text("extends: ../a.yaml\nlora_alpha: 2\nlora_dropout: 2\n")
    (tmp_path / "c.yaml").write_text("extends: [a.yaml, deep/b.yaml]\nlora_dropout: 3\n")
    found = read_recipe_file(tmp_path / "c.yaml")
    assert found == {"lora_rank": 1, "lora_alpha": 2, "lora_dropout": 3}
    (tmp_path / "c.yaml").write_text("extends: [deep/b.yaml, a.yaml]\n")
    assert read_recipe_file(tmp_path / "c.yaml") == {"lora_rank": 1, "lora_alpha": 1, "lora_dropout": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: none.yaml", "extends (in '{folder}/recipe.yaml'): there is no file '{folder}/none.yaml'"),
        ("extends: recipe.yaml", "'{folder}/recipe.yaml' extends itself"),
        ("extends: between.yaml", "'{folder}/recipe.yaml' extends itself"),
        ("extends: {lora_rank: 8}", "extends: expected a file or a list of files"),
        ("extends: [1]", "extends: expected a file or a list of files"),
        ("extends: list.yaml", "'{folder}/list.yaml' must hold `key: value` lines, got a list"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, text, expected):
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "between.yaml").write_text("extends: recipe.yaml")
    (tmp_path / "list.yaml").write_text("- lora_rank")
    with pytest.raises(RecipeError) as caught:
        read_recipe_file(tmp_path / "recipe.yaml")
    assert expected.format(folder=tmp_path) in str(caught.value)


def test_parsing_a_recipe_imports_no_torch():
    code = (
        "import sys; from scst.config.reader import build_recipe; build_recipe('sft', {'learning_rate': 1});"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
