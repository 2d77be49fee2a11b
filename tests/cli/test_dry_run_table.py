"""The dry run of every key: right values pass, wrong ones are refused with a sentence that names it."""

from __future__ import annotations

import pytest

from scst.cli.arguments import Arguments
from scst.cli.dry_run import answer_dry_run
from scst.config.checks import check_recipe
from scst.config.reader import build_recipe
from scst.config.recipes import RECIPES
from scst.errors import ScstError
from tests.support.adapter_folders import write_adapter
from tests.support.commands import call
from tests.support.setting_values import (
    TOO_LONG,
    keys_of,
    kinds_of,
    right_values,
    training_arguments,
    wrong_values,
)
from tests.support.worlds import write_recipe

TRAINING = ("sft", "scst")
KEYS = [(stage, name) for stage in RECIPES for name in keys_of(stage)]
ARGUMENTS = [(stage, name) for stage in TRAINING for name in training_arguments()]
NEEDED_BY = {
    "prompt_init": {"adapter_type": "prompt_tuning"},
    "bottleneck_places": {"adapter_type": "bottleneck"},
    "rollout_weights": {},
}
"""Keys whose values ask for others."""
NOT_HERE = {
    "report_to": "trackers that are not installed",
    "rollout_weights": "streamed needs ZeRO-3",
    "selection": "clipscore needs a model",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Stage -> keys without which it does not start."""
    adapter = str(write_adapter(tmp_path_factory.mktemp("adapter")))
    scenes = {"dataset": "embedded:scenes"}
    model = {"model_name_or_path": "embedded:scenes-paligemma"}
    return {stage: {} for stage in RECIPES} | {
        "sft": scenes | model,
        "scst": scenes | {"adapter": adapter},
        "evaluate": scenes | model | {"metrics": ["cider_d"]},
        "caption": model,
        "explain": model,
        "merge": {"adapter": adapter},
        "prepare": scenes,
        "document-frequencies": scenes,
    }


def refusal(stage: str, settings: dict) -> str | None:
    """The sentence with which a recipe is refused; None when it passes."""
    try:
        check_recipe(build_recipe(stage, settings))
    except ScstError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("stage", "name"), KEYS)
def test_a_key(stage, name, base):
    for value in right_values(stage, name):
        settings = base[stage] | NEEDED_BY.get(name, {}) | ({} if value is None else {name: value})
        refused = refusal(stage, settings)
        assert refused is None or name in NOT_HERE, (value, refused)
    assert_refuses_wrong_values(stage, name, keys_of(stage)[name], base[stage])


@pytest.mark.parametrize(("stage", "name"), ARGUMENTS)
def test_a_training_argument(stage, name, base):
    assert_refuses_wrong_values(stage, name, training_arguments()[name], base[stage])


def assert_refuses_wrong_values(stage, name, declared, settings):
    wrong = list(wrong_values(name, declared))
    if name in ("output_dir", "dataset", "adapter"):
        wrong.append(TOO_LONG)
    assert len(wrong) >= 5
    for value in wrong:
        refused = refusal(stage, settings | {name: value})
        assert refused is not None, f"{name}: {value!r} was accepted"
        assert name in refused, (value, refused)
        assert "\n" not in refused
        assert len(refused) < 1500


def test_every_kind_of_type_is_known():
    kinds = {kind for _, name in ARGUMENTS for kind in kinds_of(training_arguments()[name])}
    assert {int, float, str, bool, dict, list, type(None)} <= kinds


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "abc", "learning_rate: expected float, got 'abc'"),
        ("max_steps", 0.5, "max_steps: expected int, got 0.5"),
        ("learning_rate", float("nan"), "learning_rate: expected 0 or more, got nan"),
        ("per_device_train_batch_size", -1, "per_device_train_batch_size: expected 1 or more, got -1"),
        ("lr_scheduler_type", "linaer", "lr_scheduler_type: must be one of linear, cosine,"),
        ("optim", "adamm", "optim: must be one of adamw_torch,"),
        ("metric_for_best_model", "xyz", "metric_for_best_model: evaluations do not compute 'xyz'"),
        ("report_to", "wandb", "report_to: 'wandb' is not installed"),
        ("model_name_or_path", "no/such", "model_name_or_path: no model configuration found at 'no/such'"),
        ("adapter", "no/such", "adapter: 'no/such' holds no adapter_config.json"),
        ("train_split", "trian", "train_split: there is no split 'trian'; the dataset has train, val, test"),
        ("resume", "no/such", "resume: there is no folder 'no/such'"),
        ("lora_targets", "(", "lora_targets: '(' is no regular expression"),
    ],
)
def test_the_command_says_so_without_torch(key, value, message, tmp_path, capsys, monkeypatch):
    """From a file, as a user meets it; and a real start says the same before it imports anything."""
    monkeypatch.setattr("scst.cli.sft.answer_dry_run", dry_run_only)
    recipe = write_recipe(tmp_path / "r.yaml", extends="quickstart/sft", **{key: value})
    assert call("sft", "--config", str(recipe), "--dry_run") == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {message}")
    assert not told.out
    if key != "train_split":  # needs the dataset, which a real start reads later
        assert call("sft", "--config", str(recipe)) == 2
        assert capsys.readouterr().err == told.err


def dry_run_only(arguments: Arguments) -> bool:
    assert arguments.dry_run, "a wrong recipe was about to be run"
    return answer_dry_run(arguments)
