"""Load a saved adapter of any type, and switch off dropout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.modules.dropout import _DropoutNd

from scst.adapters import bottleneck, prefix_tuning, prompt_tuning  # noqa: F401 (PEFT learns their types)
from scst.adapters.lora import LORA_TARGETS, target_pattern
from scst.adapters.patterns import check_patterns
from scst.adapters.saved_adapter import CONFIG, WEIGHTS, adapter_settings, check_adapter_exists
from scst.errors import RecipeError
from scst.models.families.table import family_of

_RATE = re.compile(r"drop(out|_prob|_path|_rate|$)|(^|_)pdrop$")


def load_adapter(model: torch.nn.Module, adapter: str | Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on a model. For training its dropout is set to 0: see :func:`disable_dropout`.

    Raises:
        RecipeError: when the folder holds no complete adapter, or one that does not fit this model: every
            tensor of the file must have its place, every weight of the adapter its tensor, and every number
            must be finite.
    """
    check_adapter_exists(adapter)
    folder = Path(adapter)
    weights = adapter_weights(folder)
    settings = adapter_settings(folder)
    names = [name for name, _ in model.named_modules()]
    own = {target_pattern(preset, family_of(model).names) for preset in LORA_TARGETS}
    unknown = [pattern for pattern in patterns_of(settings) if pattern not in own]
    check_patterns(f"adapter: {CONFIG} of {str(folder)!r}", unknown, names)
    adapted = _with_new_adapter(model, folder)
    fill_adapter(adapted, weights, folder)
    if not trainable:
        adapted.requires_grad_(False)
        adapted.peft_config[adapted.active_adapter].inference_mode = True
        adapted.eval()
    disable_dropout(adapted)
    return adapted


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter by name.

    Raises:
        RecipeError: when one of them holds NaN or infinity.
    """
    weights = load_file(folder / WEIGHTS)
    if ruined := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise RecipeError(
            f"adapter: {len(ruined)} of {len(weights)} tensors in {str(folder / WEIGHTS)!r} hold NaN or "
            f"infinity (first: {min(ruined)[:200]}): the run that wrote it diverged; give an older checkpoint"
        )
    return weights


def fill_adapter(adapted: torch.nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Give an adapter its weights, and make sure that it got all of them and nothing was left over.

    Raises:
        RecipeError: when names or shapes differ.
    """
    own = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    try:
        result: Any = set_peft_model_state_dict(adapted, dict(weights))  # its annotation is no type
    except (RuntimeError, KeyError) as error:
        raise RecipeError(f"adapter: {_unfit(folder)}: {_first_line(error)}") from error
    missing, unexpected = sorted(own & set(result.missing_keys)), sorted(result.unexpected_keys)
    if missing or unexpected:
        example = (missing or unexpected)[0]
        raise RecipeError(
            f"adapter: {_unfit(folder)}: {len(missing)} of its {len(own)} weights are not in {WEIGHTS}, and "
            f"{len(unexpected)} of the {len(weights)} tensors there have no place (e.g. "
            f"{example[:200]}). Give the base model and the {CONFIG} that it was trained with"
        )


def _unfit(folder: Path) -> str:
    return f"{str(folder)!r} does not fit this model"


def _first_line(error: BaseException) -> str:
    """What was wrong first: torch lists every tensor on lines of their own, below a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:300] if lines else type(error).__name__


def patterns_of(settings: Mapping[str, Any]) -> list[str]:
    """The regular expressions of an adapter's settings."""
    expressions: list[str] = []
    for name in ("target_modules", "exclude_modules"):
        value = settings.get(name)
        expressions += [value] if isinstance(value, str) else []  # lists are compared, not matched
    layers = settings.get("layers_pattern") or []
    expressions += [layers] if isinstance(layers, str) else layers
    expressions += [*(settings.get("rank_pattern") or {}), *(settings.get("alpha_pattern") or {})]
    return list(dict.fromkeys(expressions))


def _with_new_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """The model with an adapter as the settings describe it; its weights are not those of the file yet."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        base, config.base_model_name_or_path = config.base_model_name_or_path, None  # PEFT would rename it
        adapted = get_peft_model(model, config)
        config.base_model_name_or_path = base
    except Exception as error:  # whatever a library raises on settings that it cannot use
        raise RecipeError(f"adapter: {_unfit(folder)}: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(adapted, PeftModel):
        raise RecipeError(f"adapter: {_unfit(folder)}: PEFT made a {type(adapted).__name__} of it")
    return adapted


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
