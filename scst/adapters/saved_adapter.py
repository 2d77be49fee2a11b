"""The folder of a saved adapter, checked before torch is imported or a model is loaded.

What ``adapter_config.json`` and the header of ``adapter_model.safetensors`` tell is checked here. Whether the
tensors fit a model is seen when they are loaded (:mod:`scst.adapters.loading`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scst.adapters.kinds import PEFT_TYPES
from scst.errors import DataError, RecipeError, shown
from scst.files.json_reader import read_json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_TYPES: dict[str, str] = {peft_type: kind for kind, peft_type in PEFT_TYPES.items()}
"""PEFT's name for a type of adapter -> the recipe's."""
_REFUSED = {
    "megatron_config": "makes the loader import a module that the file names",
    "layer_replication": "repeats layers of the model",
    "modules_to_save": "replaces whole modules of the model",
    "trainable_token_indices": "replaces rows of the embedding matrix",
}
"""Settings that adapters of this project never have -> what they would do."""
_DTYPES = ("F64", "F32", "F16", "BF16")
_SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "prompt_tuning": {".weight": ("num_tokens", "width")},
    "prefix_tuning": {
        ".keys": ("num_heads", "num_virtual_tokens", "head_dim"),
        ".values": ("num_heads", "num_virtual_tokens", "head_dim"),
    },
    "bottleneck": {
        ".down.weight": ("bottleneck_size", "width"),
        ".down.bias": ("bottleneck_size",),
        ".up.weight": ("width", "bottleneck_size"),
        ".up.bias": ("width",),
    },
}
"""Adapter type -> end of a tensor's name -> the settings that are its shape. LoRA's also have a layer's."""


def check_adapter_exists(adapter: str | Path) -> str:
    """Refuse a folder that holds no complete adapter before any model is loaded; returns the adapter's type.

    Raises:
        RecipeError: naming the folder and what it holds, a setting that would run code or cannot be, a type
            whose weights the forward passes of this project would not use, or weights that cannot be read or
            are not those that the settings describe.
    """
    folder = Path(adapter)
    settings = adapter_settings(folder)
    kind = ADAPTER_TYPES[settings["peft_type"]]
    shapes = _tensor_shapes(folder / WEIGHTS)
    fault = _lora_fault(settings, shapes) if kind == "lora" else _size_fault(kind, settings, shapes)
    if fault:
        raise _unfit(folder, fault)
    return kind


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The checked content of ``adapter_config.json``.

    Raises:
        RecipeError: as of :func:`check_adapter_exists`.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise RecipeError(
            f"adapter: {str(folder)!r} holds no {CONFIG} (found: {_found(folder)}). Give the output folder "
            "of scst sft or scst rl, or one of its checkpoints"
        )
    settings = _read_json(config)
    peft_type = settings.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in ADAPTER_TYPES:
        raise RecipeError(
            f"adapter: {str(folder)!r} is of PEFT's type {shown(peft_type)}; expected one of "
            f"{', '.join(ADAPTER_TYPES)}, which scst sft makes (docs/adapters.md)"
        )
    for name, effect in _REFUSED.items():
        if settings.get(name):
            raise RecipeError(
                f"adapter: {str(config)!r} sets {name}, which {effect}. Adapters of this project never have "
                "it; set it to null if you trust the adapter"
            )
    for name, (holds, expected) in _RULES.items():
        if name in settings and not holds(settings[name]):
            raise RecipeError(
                f"adapter: {name} in {str(config)!r} must be {expected}, got {shown(settings[name])}"
            )
    return settings


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def _read_json(config: Path) -> dict[str, Any]:
    try:
        return read_json_object(config)
    except (OSError, DataError) as error:
        raise RecipeError(f"adapter: {error}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _by_pattern(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or (isinstance(value, dict) and all(map(holds, value.values())))


_PATTERN = "an expression, or a list of module names"
_COUNT = (_is_count, "a whole number, 1 or more")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": _COUNT,
    "lora_alpha": (_is_finite, "a finite number"),
    "lora_dropout": (lambda value: _is_finite(value) and 0 <= value <= 1, "a number in [0, 1]"),
    "target_modules": (lambda value: bool(value) and (isinstance(value, str) or _are_texts(value)), _PATTERN),
    "exclude_modules": (lambda value: value is None or isinstance(value, str) or _are_texts(value), _PATTERN),
    "layers_pattern": (lambda value: value is None or isinstance(value, str) or _are_texts(value), _PATTERN),
    "rank_pattern": (_by_pattern(_is_count), "patterns with whole numbers, 1 or more"),
    "alpha_pattern": (_by_pattern(_is_finite), "patterns with finite numbers"),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name or a folder"),
    "num_virtual_tokens": _COUNT,
    "num_heads": _COUNT,
    "head_dim": _COUNT,
    "width": _COUNT,
    "bottleneck_size": _COUNT,
    "virtual_tokens": (_are_texts, "a list of tokens"),
    "token_ids": (
        lambda value: isinstance(value, list) and all(_is_count(i) or i == 0 for i in value),
        "a list of whole numbers",
    ),
}
"""Setting -> whether a value can be, and what it must be."""


def _tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a file by name; their values are not read."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise RecipeError(
            f"adapter: {str(file.parent)!r} holds no {WEIGHTS} (found: {_found(file.parent)}): its weights "
            "are missing. Copy the folder once more, or save the adapter as safetensors"
        )
    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
            strange = [name for name, part in slices.items() if part.get_dtype() not in _DTYPES]
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"adapter: {str(file)!r} is no readable safetensors file ({error}): copy it once more, or go "
            "back to an older checkpoint"
        ) from error
    if strange:
        raise _unfit(file.parent, f"{shown(strange[0])} holds no floating-point numbers")
    return shapes


def _lora_fault(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Ranks are a dimension of every pair of matrices, and those that the settings name."""
    if "r" not in settings or "target_modules" not in settings:
        return f"{CONFIG} has no r or no target_modules"
    ranks: dict[str, dict[str, int]] = {"lora_A": {}, "lora_B": {}}
    for name, shape in shapes.items():
        module, _, rest = name.rpartition(".lora_")
        part = f"lora_{rest.partition('.')[0]}"
        if part in ranks and rest.endswith(".weight"):
            if len(shape) != 2:
                return f"{shown(name)} is of shape {shape}; expected two dimensions"
            ranks[part][module] = shape[0 if part == "lora_A" else 1]
    matrices_a, matrices_b = ranks["lora_A"], ranks["lora_B"]
    if not matrices_a or matrices_a != matrices_b:
        return (
            f"its {len(shapes)} tensors are {len(matrices_a)} matrices lora_A and {len(matrices_b)} lora_B; "
            f"expected pairs of one rank (first tensor: {shown(min(shapes, default=None))})"
        )
    patterns = (settings.get("rank_pattern") or {}).values()
    allowed, seen = {settings["r"], *patterns}, set(matrices_a.values())
    if not seen <= allowed or max(allowed) > max(max(shape, default=0) for shape in shapes.values()):
        return f"its tensors are of rank {sorted(seen)}, but {CONFIG} says {sorted(allowed)}"
    return None


def _size_fault(kind: str, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Every tensor is of the size that the settings say."""
    tokens, ids = len(settings.get("virtual_tokens", ())), len(settings.get("token_ids", ()))
    if tokens != ids:
        return f"{CONFIG} names {tokens} tokens and {ids} numbers of tokens"
    sizes = dict(settings) | {"num_tokens": ids}
    if "target_modules" not in settings or not shapes:
        return f"it has {len(shapes)} tensors, and target_modules {settings.get('target_modules')!r}"
    for name, shape in shapes.items():
        end = next((end for end in _SIZES[kind] if name.endswith(end)), None)
        if end is None:
            return f"{shown(name)} is no tensor of {kind}"
        expected = tuple(sizes.get(size) for size in _SIZES[kind][end])
        if shape != expected:
            return f"{shown(name)} is of shape {shape}, but {CONFIG} says {expected}"
    return None


def _unfit(folder: Path, fault: str) -> RecipeError:
    return RecipeError(
        f"adapter: the weights in {str(folder)!r} are not those that its {CONFIG} describes: {fault}. Copy "
        "both from the run that made them"
    )
