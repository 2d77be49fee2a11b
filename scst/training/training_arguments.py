"""Builds the library's training arguments, with the values that this project sets itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations

from scst.distributed.launching import uses_fsdp
from scst.errors import RecipeError
from scst.models.pretrained import compute_dtype

Arguments = TypeVar("Arguments", bound=transformers.TrainingArguments)

DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "steps",
    "report_to": "none",
    "gradient_checkpointing": False,
    "restore_callback_states_from_checkpoint": True,  # else early stopping would forget its patience
}
"""Defaults that differ from those of the library."""


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
    values = DEFAULTS | dict(settings)
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
    _check_report_to(values["report_to"])
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training arguments: {error}") from error


def _check_report_to(report_to: str | Sequence[str]) -> None:
    """Refuse a tracker that is not installed; the library would do so only after the model is loaded."""
    available = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in ("none", "all", *available):
            raise RecipeError(
                f"report_to: {name!r} is not installed (available: {', '.join(available) or 'none'}); "
                "install it, e.g. pip install 'scst[tracking]', or use report_to: none"
            )


def evaluates(settings: Mapping[str, Any]) -> bool:
    """Whether training arguments ask for evaluations."""
    return str(settings.get("eval_strategy", "no")) != "no"


def split_settings(
    function: Callable[..., Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into those that are parameters of ``function`` and the rest (training arguments)."""
    names = set(inspect.signature(function).parameters) - {
        "training",
        "console",
        "policy",
        "data",
        "output_dir",
    }
    own = {name: value for name, value in settings.items() if name in names}
    return own, {name: value for name, value in settings.items() if name not in names}
