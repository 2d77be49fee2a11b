"""Training arguments that a dry run accepts are trained with: what passes must not fail later."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scst.training.arguments.argument_table import argument_table
from tests.chaos.malformed import texts
from tests.chaos.malformed.attack import DRY, Case
from tests.support.setting_values import training_arguments
from tests.support.worlds import tiny_run

SECONDS = 180
VALUES = (
    0,
    1,
    2,
    0.5,
    1e-3,
    3.0,
    1e30,
    True,
    False,
    None,
    "",
    "no",
    "steps",
    "abc",
    "a=1",
    [],
    ["a"],
    {},
    {"a": 1},
)
HELD_OUT = {"eval_strategy": "steps", "eval_steps": 1, "eval_split": "val", "validation_images": 2}
NEEDS: dict[str, dict[str, Any]] = {
    "eval_delay": HELD_OUT,
    "eval_on_start": HELD_OUT,
    "eval_steps": HELD_OUT,
    "eval_do_concat_batches": HELD_OUT,
    "eval_use_gather_object": HELD_OUT,
    "prediction_loss_only": HELD_OUT,
    "batch_eval_metrics": HELD_OUT,
    "include_for_metrics": HELD_OUT,
    "eval_accumulation_steps": HELD_OUT,
    "label_smoothing_factor": HELD_OUT,
    "greater_is_better": HELD_OUT | {"metric_for_best_model": "cider_d"},
    "metric_for_best_model": HELD_OUT,
    "load_best_model_at_end": HELD_OUT | {"save_strategy": "steps", "save_steps": 1},
    "save_strategy": HELD_OUT | {"metric_for_best_model": "cider_d", "save_steps": 1},
    "save_only_model": {"save_strategy": "steps", "save_steps": 1},
    "save_total_limit": {"save_strategy": "steps", "save_steps": 1},
    "save_on_each_node": {"save_strategy": "steps", "save_steps": 1},
    "save_steps": {"save_strategy": "steps"},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "lr_scheduler_type": HELD_OUT | {"metric_for_best_model": "cider_d"},
}
"""Arguments that do something only beside others."""
BEST = ("cider_d", "eval_cider_d", "loss", "reward", "mean_length", "ended_by_eos", "xyz")
NOT_TRIED = {"push_to_hub", "hub_always_push", "torch_compile", "torch_compile_backend", "torch_compile_mode"}
"""They need a network, or a compiler and minutes."""


def accepted_arguments(world: Path) -> Iterator[Case]:
    """Every training argument of both stages, with its choices and some of other values."""
    base = tiny_run(world, max_new_tokens=5, max_steps=2, learning_rate=1e-3, output_dir="out")
    own = {
        "sft": {"lora_rank": 2},
        "scst": {"adapter": str(world / "adapter"), "num_samples": 2, "table_steps": 0},
    }
    for stage in own:
        for name in training_arguments():
            if name in NOT_TRIED:
                continue
            choices = argument_table()[name].type.choices
            values = [*choices, *(BEST if name == "metric_for_best_model" else ()), *VALUES]
            for value in values:
                settings = base | own[stage] | NEEDS.get(name, {}) | {name: value}
                prepare = partial(_write, settings)
                yield Case(
                    "accepted arguments",
                    f"{stage} {name}: {value!r}",
                    stage,
                    ["--config", "recipe.yaml", DRY],
                    prepare,
                    trains=True,
                    seconds=SECONDS,
                )


def _write(settings: dict[str, Any], folder: Path) -> None:
    texts.write(folder / "recipe.yaml", yaml.safe_dump(settings))
