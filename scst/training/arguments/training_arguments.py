"""Builds the library's training arguments, with the values that this project sets itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import transformers

from scst.distributed.launcher_environment import uses_fsdp
from scst.errors import RecipeError
from scst.models.pretrained import compute_dtype
from scst.training.arguments.argument_checks import (
    DEFAULTS,
    argument_names,
    check_arguments,
    convert_argument,
)

Arguments = TypeVar("Arguments", bound=transformers.TrainingArguments)


def training_arguments(
    cls: type[Arguments], output_dir: str, settings: Mapping[str, Any], *, seed: int, precision: str = "auto"
) -> Arguments:
    """``cls`` (TrainingArguments or a subclass) with this project's defaults and decisions.

    Args:
        cls: the class to construct.
        output_dir: output folder of the run.
        settings: field -> value. Without ``per_device_eval_batch_size``, evaluation uses the batch size of
            training, and so fits into the memory that training needs.
        seed: seed of data order, initialisation and sampling.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        RecipeError: on a name, value or combination that the library refuses, or a tracker that is not
            installed.
    """
    dtype = compute_dtype(precision)
    on_gpu = torch.cuda.is_available()
    settings = {name: _converted(name, value) for name, value in settings.items()}
    check_arguments(settings)
    values = DEFAULTS | settings
    batch_size = values.get("per_device_train_batch_size", cls.per_device_train_batch_size)
    values.setdefault("per_device_eval_batch_size", batch_size)
    values |= {
        "output_dir": output_dir,
        "seed": seed,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu": not on_gpu,
        "accelerator_config": {"use_configured_state": uses_fsdp() and not on_gpu},
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training arguments: {error}") from error


def _converted(name: str, value: Any) -> Any:
    """The value in its type; names that only a subclass of the library's arguments has are left to it."""
    return convert_argument(name, value) if name in argument_names() else value


_NO_SETTINGS = {"training", "console", "policy", "data", "output_dir"}
"""Parameters of a function that builds a trainer which are no settings of the run."""


def default_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the parameters of ``function`` that are settings."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in _NO_SETTINGS}


def split_settings(
    function: Callable[..., Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into those that are parameters of ``function`` and the rest (training arguments)."""
    names = set(inspect.signature(function).parameters) - _NO_SETTINGS
    own = {name: value for name, value in settings.items() if name in names}
    return own, {name: value for name, value in settings.items() if name not in names}
