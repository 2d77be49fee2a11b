"""Checks of training arguments that need no torch: values by the table, then what they need of each other.

They run when a recipe is read, in ``--dry_run`` and at the start of a run alike, and again when a notebook
calls :func:`scst.training.arguments.training_arguments.training_arguments`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewards.scorers.text import caption_statistics
from scst.errors import RecipeError, shown
from scst.training.arguments.argument_table import OWNED, argument_table
from scst.training.arguments.scheduler_table import check_scheduler_arguments

DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "steps",
    "report_to": "none",
    "gradient_checkpointing": False,
    "restore_callback_states_from_checkpoint": True,  # else early stopping would forget its patience
}
"""Defaults that differ from those of the library."""
TRACKERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Value of ``report_to`` -> the packages that it needs."""
OPTIMIZER_PACKAGES = (
    ("galore_", "galore_torch"),
    ("apollo_", "apollo_torch"),
    ("schedule_free_", "schedulefree"),
    ("lomo", "lomo_optim"),
    ("adalomo", "lomo_optim"),
    ("grokadamw", "grokadamw"),
    ("stable_adamw", "optimi"),
    ("adamw_torch_xla", "torch_xla"),
    ("adamw_torch_npu", "torch_npu"),
    ("adamw_anyprecision", "torchdistx"),
    ("adamw_torch_4bit", "torchao"),
    ("adamw_torch_8bit", "torchao"),
    *(
        (name, "bitsandbytes")
        for name in ("adamw_bnb", "adamw_8bit", "ademamix", "lion", "paged", "rmsprop_bnb")
    ),
)
"""Beginning of an optimizer's name -> the package that it needs."""
_LOSS_BY_DEFAULT = ("reduce_lr_on_plateau", "greedy")
"""Schedulers that look at a held-out metric, at the loss where none is named."""
_LOWER_IS_BETTER = ("bad_ending_rate", "repetition_rate", "empty_rate", "truncation_rate")


def argument_names() -> Collection[str]:
    """Names of all training arguments of the installed library."""
    return argument_table().keys()


def convert_argument(name: str, value: Any) -> Any:
    """The value of one training argument in its type.

    Raises:
        RecipeError: the project or another key decides it, or the value is not of its type or range.
    """
    if name in OWNED:
        raise RecipeError(f"{name}: not a recipe key; {OWNED[name]}")
    return argument_table()[name].type.convert(name, value)


def evaluates(settings: Mapping[str, Any]) -> bool:
    """Whether training arguments ask for evaluations."""
    return str(settings.get("eval_strategy", "no")) != "no"


def check_arguments(settings: Mapping[str, Any]) -> None:
    """Refuse training arguments that contradict each other or need what is not installed.

    Args:
        settings: name -> value, as :func:`convert_argument` returns it; defaults may be left out.

    Raises:
        RecipeError: naming the argument.
    """
    values = (
        {name: argument.default for name, argument in argument_table().items()} | DEFAULTS | dict(settings)
    )
    _check_steps(values)
    _check_best(values)
    _check_scheduler(values)
    _check_optimizer(values)
    _check_loading(values)
    check_trackers(values["report_to"])
    known = argument_table()["debug"].type.choices
    if isinstance(values["debug"], str) and (wrong := [w for w in values["debug"].split() if w not in known]):
        raise RecipeError(f"debug: unknown {shown(wrong[0])}; known are {', '.join(known)}")
    if values["tf32"] and not importlib.import_module("torch").cuda.is_available():
        raise RecipeError("tf32: true needs an NVIDIA GPU (Ampere or newer), and there is none; leave it out")
    if values["use_liger_kernel"]:
        _need("use_liger_kernel", "true", "liger_kernel")


def check_best_metric(settings: Mapping[str, Any], computed: Collection[str]) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation computes; training would end at the first one.

    Args:
        settings: training arguments.
        computed: names of what evaluations compute (:func:`evaluation_metrics`).

    Raises:
        RecipeError: naming what there is.
    """
    name = settings.get("metric_for_best_model")
    by_default = (
        settings.get("load_best_model_at_end") or settings.get("lr_scheduler_type") in _LOSS_BY_DEFAULT
    )
    if name is None and not by_default:
        return
    plain = ("loss" if name is None else str(name)).removeprefix("eval_")
    if plain not in computed:
        close = difflib.get_close_matches(plain, computed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        reason = "" if name is not None else " (the library's default, since none is given)"
        raise RecipeError(
            f"metric_for_best_model: evaluations do not compute {shown(plain)}{reason}; they compute "
            f"{', '.join(computed)}{hint}"
        )
    if plain in _LOWER_IS_BETTER and settings.get("greater_is_better") is None:
        raise RecipeError(
            f"metric_for_best_model: less {plain} is better; give greater_is_better: false, too"
        )


def check_early_stopping(patience: int | None, settings: Mapping[str, Any]) -> None:
    """Refuse early stopping without evaluations, or without a metric that it could watch.

    Raises:
        RecipeError: naming what to give.
    """
    if patience is None:
        return
    if not evaluates(settings):
        raise RecipeError(
            "early_stopping_patience: there is no evaluation to be patient with; give eval_strategy: steps "
            "(and eval_steps), or --early_stopping_patience null"
        )
    if not settings.get("metric_for_best_model") and not settings.get("load_best_model_at_end"):
        raise RecipeError("early_stopping_patience: needs metric_for_best_model, e.g. cider_d")


def evaluation_metrics(metrics: Sequence[str], *, has_loss: bool, has_reward: bool) -> list[str]:
    """Names of what evaluations during training compute, beside ``metrics`` of the suite."""
    others = ["ended_by_eos", *caption_statistics(["a caption"])]
    extra = ["loss"] * has_loss + ["reward"] * has_reward
    return list(dict.fromkeys([*extra, *metrics, *others]))


def check_trackers(report_to: Any) -> None:
    """Refuse a tracker that is unknown or not installed; the library would do so after the model is loaded.

    Raises:
        RecipeError: naming those that are installed.
    """
    for name in [report_to] if isinstance(report_to, str) or report_to is None else report_to:
        if name in ("none", "all") or name == "kubeflow":
            continue
        if name not in TRACKERS:
            raise RecipeError(f"report_to: unknown {shown(name)}; known are none, all, {', '.join(TRACKERS)}")
        if not _is_installed(name):
            there = ", ".join(filter(_is_installed, TRACKERS)) or "none"
            raise RecipeError(
                f"report_to: {name!r} is not installed (available: {there}); "
                "install it, e.g. pip install 'scst[tracking]', or use report_to: none"
            )


def _is_installed(tracker: str) -> bool:
    if tracker == "tensorboard" and importlib.util.find_spec("tensorboardX") is not None:
        return True
    return all(importlib.util.find_spec(package) is not None for package in TRACKERS[tracker])


def _need(name: str, value: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RecipeError(f"{name}: {value} needs the package {package}, which is not installed")


def _check_steps(values: Mapping[str, Any]) -> None:
    """Steps below 1 are shares of the run; from 1 on they must be whole."""
    for what in ("logging", "eval", "save"):
        steps = values[f"{what}_steps"]
        if steps is not None and steps > 1 and steps != int(steps):
            raise RecipeError(f"{what}_steps: expected a whole number or a share below 1, got {shown(steps)}")
    if values["eval_on_start"] and not evaluates(values):
        raise RecipeError("eval_on_start: there are no evaluations; give eval_strategy, too")


def _check_best(values: Mapping[str, Any]) -> None:
    """Refuse to keep the best checkpoint where evaluations and checkpoints do not come together."""
    by_best = values["save_strategy"] == "best"
    if by_best and not (evaluates(values) and values["metric_for_best_model"]):
        raise RecipeError("save_strategy: best needs eval_strategy and metric_for_best_model")
    if not values["load_best_model_at_end"] or by_best:
        return
    if values["eval_strategy"] != values["save_strategy"]:
        raise RecipeError(
            f"load_best_model_at_end: needs eval_strategy and save_strategy to be the same, got "
            f"{values['eval_strategy']} and {values['save_strategy']}"
        )
    if values["eval_strategy"] == "no":
        raise RecipeError("load_best_model_at_end: there are no evaluations; give eval_strategy, too")
    saves, evaluations = values["save_steps"], values["eval_steps"] or values["logging_steps"]
    if values["eval_strategy"] == "steps" and not _is_multiple(saves, evaluations):
        raise RecipeError(
            f"load_best_model_at_end: save_steps must be a multiple of eval_steps, got {saves:g} and "
            f"{evaluations:g}"
        )


def _is_multiple(saves: float, evaluations: float) -> bool:
    if (saves < 1) != (evaluations < 1):
        return False  # a share of the run and a number of steps
    scale = 1_000_000 if saves < 1 else 1
    return (saves * scale) % (evaluations * scale) == 0


def _check_scheduler(values: Mapping[str, Any]) -> None:
    """Refuse ``lr_scheduler_kwargs`` that the scheduler does not take, and plateaus without evaluations."""
    name, kwargs = values["lr_scheduler_type"], values["lr_scheduler_kwargs"]
    if isinstance(kwargs, str):
        try:
            kwargs = json.loads(kwargs)
        except ValueError as error:
            raise RecipeError(f"lr_scheduler_kwargs: expected a mapping, got {shown(kwargs)}") from error
    if not isinstance(kwargs, dict | None):
        raise RecipeError(f"lr_scheduler_kwargs: expected a mapping, got {shown(kwargs)}")
    if name in _LOSS_BY_DEFAULT and not evaluates(values):
        raise RecipeError(f"lr_scheduler_type: {name} looks at evaluations; give eval_strategy, too")
    check_scheduler_arguments(name, kwargs or {}, values["learning_rate"])


def _check_optimizer(values: Mapping[str, Any]) -> None:
    """Refuse optimizers whose package, modules or options are missing."""
    options = values["optim_args"]
    if options and not all(part.count("=") == 1 for part in options.replace(" ", "").split(",")):
        raise RecipeError(f"optim_args: expected key=value,key=value, got {shown(options)}")
    name = values["optim"]
    if name is None:  # the library's default depends on torch
        return
    for beginning, package in OPTIMIZER_PACKAGES:
        if name.startswith(beginning):
            _need("optim", name, package)
    if name.startswith(("galore_", "apollo_")) and values["optim_target_modules"] is None:
        raise RecipeError(f"optim: {name} needs optim_target_modules")
    if name.endswith("layerwise") and values["gradient_accumulation_steps"] != 1:
        raise RecipeError(f"optim: {name} needs gradient_accumulation_steps: 1")


def _check_loading(values: Mapping[str, Any]) -> None:
    """Refuse options of worker processes where there are none."""
    if values["dataloader_num_workers"] == 0:
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            if values[f"dataloader_{name}"]:
                raise RecipeError(
                    f"dataloader_{name}: there are no workers; give dataloader_num_workers, too"
                )
    if values["report_to"] == "kubeflow" and "KUBEFLOW_TRAINER_SERVER_URL" not in os.environ:
        raise RecipeError("report_to: kubeflow needs KUBEFLOW_TRAINER_SERVER_URL; use report_to: none")
