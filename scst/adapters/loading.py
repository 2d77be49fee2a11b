"""Load a saved adapter of any type, and switch off dropout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.modules.dropout import _DropoutNd

from scst.adapters import bottleneck, prefix_tuning, prompt_tuning
from scst.errors import RecipeError

_RATE = re.compile(r"drop(out|_prob|_path|_rate|$)|(^|_)pdrop$")
ADAPTER_TYPES: dict[str, str] = {
    "LORA": "lora",
    prompt_tuning.PEFT_TYPE: "prompt_tuning",
    prefix_tuning.PEFT_TYPE: "prefix_tuning",
    bottleneck.PEFT_TYPE: "bottleneck",
}
"""PEFT's name for a type of adapter -> the recipe's."""


def load_adapter(model: torch.nn.Module, adapter: str | Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on a model. For training its dropout is set to 0: see :func:`disable_dropout`.

    Raises:
        RecipeError: when the folder holds no adapter.
    """
    check_adapter_exists(adapter)
    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    disable_dropout(adapted)
    return adapted


def check_adapter_exists(adapter: str | Path) -> str:
    """Refuse a local folder without an adapter before any model is loaded; returns the adapter's type.

    Raises:
        RecipeError: naming the folder and what it holds, a setting that would run code, or a type whose
            weights the forward passes of this project would not use.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        found = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        )
        raise RecipeError(
            f"adapter: {str(adapter)!r} holds no adapter_config.json (found: {found or 'nothing'}). Give the "
            "output folder of launch/sft.py or launch/scst.py, or one of its checkpoints"
        )
    peft_type = _adapter_settings(folder / "adapter_config.json").get("peft_type")
    if peft_type not in ADAPTER_TYPES:
        raise RecipeError(
            f"adapter: {str(adapter)!r} is of PEFT's type {peft_type!r}; expected one of "
            f"{', '.join(ADAPTER_TYPES)}, which launch/sft.py makes (docs/adapters.md)"
        )
    return ADAPTER_TYPES[peft_type]


def _adapter_settings(config: Path) -> dict[str, Any]:
    """Settings of an adapter; refuses ``megatron_config``, which makes PEFT import a module by name."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"adapter: {str(config)!r} is no readable JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("megatron_config"):
        raise RecipeError(
            f"adapter: {str(config)!r} sets megatron_config, which makes the loader import a module that the "
            "file names. Adapters of this project never have it; set it to null if you trust the adapter"
        )
    return settings


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of a model to 0, because captions are sampled in eval and scored in train mode."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        # Attention does not use nn.Dropout: it reads a number, from itself or from its configuration, as
        # stochastic depth does.
        for holder in (module, getattr(module, "config", None)):
            for name in _dropout_rates(holder):
                setattr(holder, name, 0.0)


def _dropout_rates(holder: object) -> list[str]:
    """Names of attributes that hold a dropout probability: ``attention_dropout``, ``drop_prob``, ..."""
    rates = getattr(holder, "__dict__", {})
    return [name for name, value in rates.items() if isinstance(value, float) and _RATE.search(name)]
