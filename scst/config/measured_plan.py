"""``--plan``: measures a few steps of a recipe and of similar ones before hours are spent on it.

The stage is built as for a run, from the same data and model, but writes to a temporary folder. Import this
after the arguments are parsed: it imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from scst.config.recipes import SCSTRecipe, SFTRecipe
from scst.data.files import write_json
from scst.data.load_splits import LoadedData
from scst.data.stream_settings import is_tar
from scst.data.terminal import plain
from scst.data.visible import json_text
from scst.errors import RecipeError
from scst.models.policy import base_model, trains_prompt, trains_vision
from scst.training.hooks import TrainerHooks
from scst.training.micro_batcher import DoesNotFit, is_out_of_memory
from scst.training.plan import (
    Alternative,
    EvaluationCost,
    Plan,
    StepCost,
    device_of,
    measure_checkpoint,
    measure_evaluation,
    measure_steps,
    peak_of,
    project,
    schedule_of,
)
from scst.training.plan_tables import print_plan
from scst.training.run import total_steps
from scst.training.run_folder.run_record import versions

Recipe = TypeVar("Recipe", SFTRecipe, SCSTRecipe)

MEASURED_STEPS = 5
MEASURED_STEPS_OF_ALTERNATIVES = 3


@contextmanager
def recipe_to_run(recipe: Recipe, plan: bool | str) -> Iterator[Recipe]:
    """Yield the recipe to run. For a plan it writes to a temporary folder, and to no tracker and no hub."""
    if not plan:
        yield recipe
        return
    if recipe.streaming or is_tar(recipe.dataset or ""):
        raise RecipeError(
            "--plan: a stream has no number of rows to plan with; plan with a part of it as parquet"
        )
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        changes: dict[str, Any] = {
            "output_dir": folder,
            "resume": False,
            "early_stopping_patience": None,
            "validation_images": min(recipe.validation_images, recipe.validation_batch_size or 16),
            "training": recipe.training | {"report_to": "none", "push_to_hub": False},
            "table_steps": 0,
            "feature_cache": False,  # a second setting would find what the first one stored
        }
        keys = {f.name for f in dataclasses.fields(recipe)}
        yield dataclasses.replace(recipe, **{k: v for k, v in changes.items() if k in keys})


def print_plan_of(
    recipe: Recipe,
    full_recipe: Recipe,
    build_trainer: Callable[[Recipe], TrainerHooks],
    data: LoadedData,
    target: bool | str,
    *,
    started: float,
) -> None:
    """Make a plan, print its tables to standard error, and write it as JSON.

    Args:
        recipe: as :func:`recipe_to_run` yields it.
        full_recipe: the recipe as the user gave it.
        build_trainer: builds the stage's trainer for a recipe; data and model are the same every time.
        data: the training data.
        target: JSON file to write; True prints the JSON to standard output.
        started: ``time.time()`` at the start of the command.
    """
    is_main = PartialState().is_main_process
    console = Console(stderr=True, quiet=not is_main, width=None if os.isatty(2) else 140)
    eval_images = full_recipe.validation_images
    if recipe.eval_split in data.splits:
        eval_images = min(eval_images, len(data.splits[recipe.eval_split]))
    plan = make_plan(recipe, build_trainer, data, eval_images, started=started, console=console)
    print_plan(plan, eval_images, console)
    record = plan.record() | {"versions": versions(), "processes": PartialState().num_processes}
    if is_main and isinstance(target, str):
        write_json(Path(target), record)
    elif is_main:
        print(json_text(record, indent=2))


def make_plan(
    recipe: Recipe,
    build_trainer: Callable[[Recipe], TrainerHooks],
    data: LoadedData,
    eval_images: int,
    *,
    started: float,
    console: Console,
) -> Plan:
    """Measure the recipe, its evaluation and checkpoint, then its alternatives (on one process only)."""
    trainer = _quiet(build_trainer(recipe))
    startup = time.time() - started
    batches = math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps)
    schedule = schedule_of(trainer.args, total_steps(trainer), batches)
    console.print(plain(f"plan: {1 + MEASURED_STEPS} steps of the recipe"))
    step = _cost_if_it_fits(trainer, MEASURED_STEPS)
    evaluation = projection = None
    if step is not None:
        evaluation = _evaluation(trainer, recipe)
        projection = project(
            schedule,
            step,
            evaluation,
            evaluation_images=eval_images,
            checkpoint_seconds=measure_checkpoint(trainer),
            startup_seconds=startup,
        )
    name, memory = device_of(trainer.args.device)
    others = alternatives(recipe, len(data.splits[recipe.train_split]), trainer.model)
    if trainer.args.world_size > 1 or trainer.is_deepspeed_enabled:
        console.print("plan: other settings are tried on one process without DeepSpeed only")
        others = []
    model = trainer.model
    del trainer  # its optimizer and gradients must not count in the memory of the alternatives
    measured = [_measure_alternative(recipe, other, model, build_trainer, console) for other in others]
    return Plan(
        stage=recipe.stage,
        device=name,
        device_gb=memory,
        schedule=schedule,
        step=step,
        evaluation=evaluation,
        projection=projection,
        alternatives=measured,
        hints=_hints(recipe, step, memory),
    )


def alternatives(
    recipe: SFTRecipe | SCSTRecipe, num_images: int, model: torch.nn.Module
) -> list[dict[str, Any]]:
    """The alternatives to a recipe: for each, the keys to change and their values.

    Where the batch size changes, gradient accumulation changes with it so that, where possible, the optimizer
    step has the same images.
    """
    batch = recipe.training.get("per_device_train_batch_size", 8)
    accumulation = recipe.training.get("gradient_accumulation_steps", 1)
    found = []
    if accumulation % 2 == 0:
        found.append(
            {"per_device_train_batch_size": 2 * batch, "gradient_accumulation_steps": accumulation // 2}
        )
    elif 2 * batch * accumulation <= num_images:
        found.append({"per_device_train_batch_size": 2 * batch})
    if batch % 2 == 0:
        found.append(
            {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": 2 * accumulation}
        )
    found.append({"gradient_checkpointing": not recipe.training.get("gradient_checkpointing", False)})
    if isinstance(recipe, SCSTRecipe):
        fewer = max(1 if recipe.baseline == "greedy" else 2, recipe.num_samples // 2)
        found += [{"num_samples": fewer}] if fewer < recipe.num_samples else []
        can_leave_out = recipe.prompt_gradient and not (trains_vision(model) or trains_prompt(model))
        found += [{"prompt_gradient": False}] if can_leave_out else []
    return found


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A copy of the recipe with other values for some of its keys or training arguments."""
    keys = {f.name for f in dataclasses.fields(recipe)}
    own = {name: value for name, value in settings.items() if name in keys}
    training = {name: value for name, value in settings.items() if name not in keys}
    return dataclasses.replace(recipe, **own, training=recipe.training | training)


def _measure_alternative(
    recipe: Recipe,
    settings: dict[str, Any],
    model: torch.nn.Module,
    build_trainer: Callable[[Recipe], TrainerHooks],
    console: Console,
) -> Alternative:
    alternative = Alternative(settings, None)
    console.print(plain(f"plan: {1 + MEASURED_STEPS_OF_ALTERNATIVES} steps with {alternative.name}"))
    base = base_model(model)
    base.gradient_checkpointing_disable()  # the trainer enables it where the setting asks for it
    base.disable_input_require_grads()
    trainer = _quiet(build_trainer(with_settings(recipe, settings)))
    return Alternative(settings, _cost_if_it_fits(trainer, MEASURED_STEPS_OF_ALTERNATIVES))


def _quiet(trainer: TrainerHooks) -> TrainerHooks:
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _cost_if_it_fits(trainer: TrainerHooks, steps: int) -> StepCost | None:
    clear_device_cache(garbage_collection=True)
    try:
        return measure_steps(trainer, steps=steps)
    except Exception as error:
        if not (isinstance(error, DoesNotFit) or is_out_of_memory(error)):
            raise
    clear_device_cache(garbage_collection=True)
    return None


def _evaluation(trainer: TrainerHooks, recipe: SFTRecipe | SCSTRecipe) -> EvaluationCost | None:
    try:
        return measure_evaluation(trainer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"validation_batch_size: an evaluation runs out of memory with {recipe.validation_batch_size} "
            "images at a time (0: as many as in a micro-batch); give a smaller number"
        ) from error


def _hints(recipe: SFTRecipe | SCSTRecipe, step: StepCost | None, memory_gb: float) -> list[str]:
    """Advice about quantisation, which is not measured: it would need another model in memory."""
    if step is None or peak_of(step) > 0.9 * memory_gb:
        return [] if recipe.quantization == "nf4" else ["quantization: nf4 takes less memory (not measured)"]
    if recipe.quantization != "none" and peak_of(step) < 0.5 * memory_gb:
        return ["quantization: none has no weights to unpack, but takes more memory (not measured)"]
    return []
