"""The table of training arguments: name, type, choices, range and default of each.

Types, choices and defaults are read from the source of the installed ``transformers``; importing it would
import torch, which takes seconds. The library declares no ranges and leaves some choices to its help texts:
those stand here, by name. ``tests/training/test_argument_table.py`` compares all with the imported library.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scst.training.arguments.library_source import members_of, parsed
from scst.training.arguments.value_types import ANY_NUMBER, LARGEST_SEED, Range, ValueType, type_of

_COUNT = Range(at_least=1)
_NOT_NEGATIVE = Range(at_least=0)
_POSITIVE = Range(above=0)
RANGES: dict[str, Range] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "num_train_epochs": _POSITIVE,
    "max_steps": Range(at_least=1, also=-1),
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": Range(at_least=0, below=1),
    "adam_beta2": Range(at_least=0, below=1),
    "adam_epsilon": _NOT_NEGATIVE,
    "gradient_accumulation_steps": _COUNT,
    "max_grad_norm": _NOT_NEGATIVE,
    "label_smoothing_factor": Range(at_least=0, below=1),
    "neftune_noise_alpha": _POSITIVE,
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "eval_accumulation_steps": _COUNT,
    "save_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "data_seed": Range(at_least=0, at_most=LARGEST_SEED),
    "dataloader_num_workers": Range(at_least=0, at_most=4096),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
}
"""Name -> numbers that make sense. Every other number only has to be finite."""

_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES: dict[str, tuple[str, ...]] = {
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "train_sampling_strategy": ("random", "sequential"),
    "dataloader_multiprocessing_context": ("fork", "forkserver", "spawn"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "torch_compile_backend": ("inductor", "eager", "aot_eager", "cudagraphs", "onnxrt", "openxla"),
}
"""Name -> allowed texts where the library's annotation says ``str``."""

_LAUNCHER = "the launcher decides it: give --accelerate_config (docs/devices.md)"
_PRECISION = "use `precision`"
_OURS = "the project sets it"
OWNED: dict[str, str] = {
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "resume_from_checkpoint": "use `resume`",
    "deepspeed": _LAUNCHER,
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
    "accelerator_config": _LAUNCHER,
    "use_cpu": _LAUNCHER,
    "local_rank": _LAUNCHER,
    "ddp_backend": _LAUNCHER,
    "hub_token": "recipes are recorded, and tokens must not be: set HF_TOKEN, or run `hf auth login`",
    "enable_jit_checkpoint": "signals are answered with a checkpoint anyway (docs/unkillable.md)",
    **dict.fromkeys(
        (
            "remove_unused_columns",
            "label_names",
            "length_column_name",
            "do_train",
            "do_eval",
            "do_predict",
            "disable_tqdm",
            "dataloader_pin_memory",
            "gradient_checkpointing_kwargs",
            "activation_checkpointing_kwargs",
        ),
        _OURS,
    ),
}
"""Training arguments that a recipe may not set -> what to do instead."""


@dataclass(frozen=True)
class Argument:
    """One training argument.

    Attributes:
        type: of its values.
        default: of the library; None where it depends on the installation.
    """

    type: ValueType
    default: Any


@functools.cache
def argument_table() -> Mapping[str, Argument]:
    """Every field of the installed ``transformers.TrainingArguments`` by name.

    Raises:
        RecipeError: transformers is not installed.
    """
    module = parsed("training_args")
    enums = _enums(module)
    body = next(
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    return {
        node.target.id: Argument(
            _type(node.target.id, ast.unparse(node.annotation), enums), _default(node.value)
        )
        for node in body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }


def _enums(module: ast.Module) -> dict[str, tuple[str, ...]]:
    """Enumeration -> its texts, for those that a module defines or imports from beside itself."""
    found: dict[str, tuple[str, ...]] = {}
    wanted = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    homes = [(module, wanted)]
    for node in module.body:
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 1
            and node.module in ("trainer_utils", "debug_utils")
        ):
            homes.append((parsed(node.module), {alias.name for alias in node.names}))
    for home, names in homes:
        found |= {name: tuple(members_of(home, name).values()) for name in names}
    return {name: values for name, values in found.items() if values}


def _type(name: str, annotation: str, enums: Mapping[str, tuple[str, ...]]) -> ValueType:
    more: dict[str, Any] = {"range": RANGES.get(name, ANY_NUMBER)}
    if name in CHOICES:
        more["choices"] = CHOICES[name]
    return type_of(annotation, enums, **more)


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):  # field(default=..., metadata=...)
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        value = keywords.get("default")
        if "default_factory" in keywords:
            return []
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
