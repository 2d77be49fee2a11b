"""The table of training arguments against the library that it was read from."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys

import pytest
import transformers
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import get_scheduler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from scst.errors import RecipeError
from scst.training.arguments.argument_checks import (
    OPTIMIZER_PACKAGES,
    TRACKERS,
    check_arguments,
    check_best_metric,
    check_trackers,
    convert_argument,
    evaluation_metrics,
)
from scst.training.arguments.argument_table import CHOICES, OWNED, RANGES, argument_table
from scst.training.arguments.scheduler_table import scheduler_table
from scst.training.arguments.training_arguments import training_arguments
from tests.support.paths import ROOT

FIELDS = {f.name: f for f in dataclasses.fields(transformers.TrainingArguments) if f.init}
SETTABLE = sorted(set(FIELDS) - set(OWNED) - {"output_dir", "seed"})
VALUES = [
    *(-1, 0, 1, 2, 3.0, 0.5, 1e9, float("nan"), float("inf"), 10**30),
    *(True, False, None, "", "no", "abc", "steps", "1", "0.1", [], ["a"], {}, {"a": 1}),
]
"""What any argument is tried with: right for some, wrong for others."""


def constructed(settings, tmp_path):
    return training_arguments(
        transformers.TrainingArguments, str(tmp_path), settings, seed=1, precision="fp32"
    )


def test_the_table_takes_no_torch():
    code = (
        "import sys; from scst.training.arguments.argument_checks import check_arguments\n"
        "check_arguments({})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_and_defaults_are_those_of_the_library():
    table = argument_table()
    assert set(table) == {name for name in FIELDS if not name.startswith("_")}
    assert set(OWNED) | set(RANGES) | set(CHOICES) <= set(table)
    for name, declared in FIELDS.items():
        if declared.default is not dataclasses.MISSING and name != "optim":
            assert table[name].default == declared.default, name


def test_choices_are_those_of_the_library():
    table = argument_table()
    enums = {"lr_scheduler_type": SchedulerType, "optim": OptimizerNames}
    enums |= {"save_strategy": SaveStrategy, "eval_strategy": IntervalStrategy}
    for name, enum in enums.items():
        assert table[name].type.choices == tuple(member.value for member in enum)
        assert convert_argument(name, next(iter(enum))) == next(iter(enum)).value


@pytest.mark.parametrize("name", SETTABLE)
def test_what_is_accepted_can_be_constructed_and_the_rest_is_named(name, tmp_path):
    """Whatever the table lets pass, the library takes; a refusal begins with a name."""
    accepted = 0
    for value in VALUES:
        try:
            constructed({name: value}, tmp_path)
            accepted += 1
        except RecipeError as error:
            text = str(error)
            assert text.split(":")[0] in FIELDS, text
            assert len(text) < 2000
    assert accepted < len(VALUES) - 5, "an argument that takes everything is not checked"


def test_trackers_are_those_of_the_library():
    assert {*TRACKERS, "kubeflow"} == set(INTEGRATION_TO_CALLBACK)
    installed = get_available_reporting_integrations()
    for name in TRACKERS:
        if name in installed:
            check_trackers(name)
        else:
            with pytest.raises(RecipeError, match=f"^report_to: '{name}' is not installed"):
                check_trackers([name])
    for wrong in ("wandbb", None, ["none", "abc"]):
        with pytest.raises(RecipeError, match=r"^report_to: unknown "):
            check_trackers(wrong)


@pytest.mark.parametrize("name", [member.value for member in SchedulerType])
def test_schedulers_take_what_the_table_says(name, tiny_optimizer):
    needed = {"warmup_stable_decay": {"num_decay_steps": 2}}
    needed |= {name: {"min_lr": 1e-6} for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")}
    kwargs = needed.get(name, {})
    settings = {"lr_scheduler_type": name, "eval_strategy": "epoch", "lr_scheduler_kwargs": kwargs}
    check_arguments(settings)
    get_scheduler(name, tiny_optimizer, 1, 10, scheduler_specific_kwargs=kwargs)
    if kwargs:
        with pytest.raises(RecipeError, match=f"^lr_scheduler_kwargs: {name} needs "):
            check_arguments(settings | {"lr_scheduler_kwargs": None})
    with pytest.raises(RecipeError, match=r"^lr_scheduler_kwargs: .* has no 'wings'"):
        check_arguments(settings | {"lr_scheduler_kwargs": kwargs | {"wings": 2}})
    for argument in scheduler_table()[name].types:
        with pytest.raises(RecipeError, match=f"^lr_scheduler_kwargs: .*{argument}"):
            check_arguments(settings | {"lr_scheduler_kwargs": kwargs | {argument: [-1]}})


@pytest.fixture
def tiny_optimizer():
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize("name", [member.value for member in OptimizerNames])
def test_optimizers_without_their_package_are_refused(name, tmp_path, tiny_model):
    """Where the library cannot find an optimizer, the table says so before a model is loaded."""
    settings = {"optim": name, "optim_target_modules": ["q_proj"]}
    package = next((p for beginning, p in OPTIMIZER_PACKAGES if name.startswith(beginning)), None)
    if package is not None and importlib.util.find_spec(package) is None:
        with pytest.raises(RecipeError, match=f"^optim: {name} needs the package {package}"):
            check_arguments(settings)
        return
    arguments = constructed(settings, tmp_path)
    transformers.Trainer.get_optimizer_cls_and_kwargs(arguments, tiny_model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs eval_strategy and save_strategy"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"},
            "there are no evaluations",
        ),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 30},
            "save_steps must be a multiple of eval_steps, got 30 and 20",
        ),
        ({"save_strategy": "best"}, "save_strategy: best needs"),
        ({"logging_steps": 1.5}, "logging_steps: expected a whole number"),
        ({"eval_on_start": True}, "eval_on_start: there are no evaluations"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "looks at evaluations"),
        ({"lr_scheduler_kwargs": "[1]"}, "lr_scheduler_kwargs: expected a mapping"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}},
            "lr_end must be below learning_rate",
        ),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor: there are no workers"),
        ({"dataloader_persistent_workers": True}, "there are no workers"),
        ({"optim_args": "rank 8"}, "optim_args: expected key=value"),
        ({"debug": "everything"}, "debug: unknown 'everything'"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message, tmp_path):
    with pytest.raises(RecipeError) as refused:
        constructed(settings, tmp_path)
    assert message in str(refused.value)


def test_the_best_checkpoint_is_chosen_by_something_that_is_computed():
    sft = evaluation_metrics(["cider_d"], has_loss=True, has_reward=False)
    scst = evaluation_metrics(["cider_d", "bleu_4"], has_loss=False, has_reward=True)
    best = {"load_best_model_at_end": True}
    check_best_metric(best, sft)
    for name in ("cider_d", "eval_cider_d", "loss", "mean_length"):
        check_best_metric({"metric_for_best_model": name}, sft)
    check_best_metric({"metric_for_best_model": "reward"}, scst)
    check_best_metric({"metric_for_best_model": "empty_rate", "greater_is_better": False}, sft)
    for settings, computed, message in (
        ({"metric_for_best_model": "cider"}, sft, "do not compute 'cider'.* did you mean cider_d"),
        ({"metric_for_best_model": "reward"}, sft, "do not compute 'reward'"),
        ({"metric_for_best_model": ""}, sft, "do not compute ''"),
        (best, scst, "do not compute 'loss' .the library's default"),
        ({"metric_for_best_model": "empty_rate"}, sft, "less empty_rate is better"),
    ):
        with pytest.raises(RecipeError, match=f"^metric_for_best_model: .*{message}"):
            check_best_metric(settings, computed)
