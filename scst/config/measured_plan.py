"""``--plan``: measure a few steps of a recipe, and of some like it, before hours are spent on it.

The stage is built as for a run, from the same data and model, but writes to a temporary folder. Import this
after the arguments are parsed: it imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from rich.console import Console
from rich.table import Table

from scst.cli.arguments import Arguments
from scst.data.files import write_json
from scst.data.loading import LoadedData
from scst.models.policy import trains_prompt, trains_vision
from scst.training.micro_batcher import DoesNotFit, is_out_of_memory
from scst.training.plan import (
    Alternative,
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
from scst.training.run import total_steps
from scst.training.run_record import versions

MEASURED_STEPS = 5
MEASURED_STEPS_OF_ALTERNATIVES = 3


@contextmanager
def recipe_to_run(arguments: Arguments) -> Iterator[Any]:
    """The recipe of a run; for a plan one that touches neither its output folder nor a tracker or the hub."""
    if not arguments.plan:
        yield arguments.recipe
        return
    recipe = arguments.recipe
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        changes = {
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


def answer_plan(
    arguments: Arguments,
    recipe: Any,
    build_trainer: Callable[[Any], Any],
    data: LoadedData,
    *,
    stage: str,
    started: float,
) -> bool:
    """On ``--plan`` measure, print tables, and write JSON to the file or print it; True when that was all.

    Args:
        arguments: the command line.
        recipe: of :func:`recipe_to_run`.
        build_trainer: the stage's trainer of a recipe, on the same data and model every time.
        data: what is trained on.
        stage: "sft" or "scst".
        started: ``time.time()`` at the start of the command.
    """
    if not arguments.plan:
        return False
    is_main = PartialState().is_main_process
    console = Console(stderr=True, quiet=not is_main, width=None if os.isatty(2) else 140)
    eval_images = arguments.recipe.validation_images
    if recipe.eval_split in data.splits:
        eval_images = min(eval_images, len(data.splits[recipe.eval_split]))
    plan = make_plan(recipe, build_trainer, data, eval_images, stage=stage, started=started, console=console)
    print_plan(plan, eval_images, console)
    record = plan.record() | {"versions": versions(), "processes": PartialState().num_processes}
    if is_main and isinstance(arguments.plan, str):
        write_json(Path(arguments.plan), record)
    elif is_main:
        print(json.dumps(record, indent=2))
    return True


def make_plan(
    recipe: Any,
    build_trainer: Callable[[Any], Any],
    data: LoadedData,
    eval_images: int,
    *,
    stage: str,
    started: float,
    console: Console,
) -> Plan:
    """Measure the recipe, its evaluation and checkpoint, then its alternatives (on one process only)."""
    trainer = _quiet(build_trainer(recipe))
    startup = time.time() - started
    batches = math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps)
    schedule = schedule_of(trainer.args, total_steps(trainer), batches)
    console.print(f"plan: {1 + MEASURED_STEPS} steps of the recipe")
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
    model, trainer = trainer.model, None
    measured = [_measure_alternative(recipe, other, model, build_trainer, console) for other in others]
    return Plan(
        stage=stage,
        device=name,
        device_gb=memory,
        schedule=schedule,
        step=step,
        evaluation=evaluation,
        projection=projection,
        alternatives=measured,
        hints=_hints(recipe, step, memory),
    )


def alternatives(recipe: Any, num_images: int, model: Any) -> list[dict[str, Any]]:
    """Keys to change, one setting at a time. Halved batches make the same optimizer step in more parts."""
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
    fewest = 2 if getattr(recipe, "baseline", "greedy") != "greedy" else 1
    fewer = max(fewest, getattr(recipe, "num_samples", 0) // 2)
    if fewer < getattr(recipe, "num_samples", 0):
        found.append({"num_samples": fewer})
    if getattr(recipe, "prompt_gradient", False) and not (trains_vision(model) or trains_prompt(model)):
        found.append({"prompt_gradient": False})
    return found


def with_settings(recipe: Any, settings: dict[str, Any]) -> Any:
    """The recipe with other values of its own keys or of training arguments."""
    keys = {f.name for f in dataclasses.fields(recipe)}
    own = {name: value for name, value in settings.items() if name in keys}
    training = {name: value for name, value in settings.items() if name not in keys}
    return dataclasses.replace(recipe, **own, training=recipe.training | training)


def _measure_alternative(
    recipe: Any, settings: dict[str, Any], model: Any, build_trainer: Callable[[Any], Any], console: Console
) -> Alternative:
    alternative = Alternative(settings, None)
    console.print(f"plan: {1 + MEASURED_STEPS_OF_ALTERNATIVES} steps with {alternative.name}")
    base = model.get_base_model()
    base.gradient_checkpointing_disable()  # the trainer enables it where the setting asks for it
    base.disable_input_require_grads()
    trainer = _quiet(build_trainer(with_settings(recipe, settings)))
    return Alternative(settings, _cost_if_it_fits(trainer, MEASURED_STEPS_OF_ALTERNATIVES))


def _quiet(trainer: Any) -> Any:
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _cost_if_it_fits(trainer: Any, steps: int) -> StepCost | None:
    clear_device_cache(garbage_collection=True)
    try:
        return measure_steps(trainer, steps=steps)
    except Exception as error:
        if not (isinstance(error, DoesNotFit) or is_out_of_memory(error)):
            raise
    clear_device_cache(garbage_collection=True)
    return None


def _evaluation(trainer: Any, recipe: Any) -> Any:
    try:
        return measure_evaluation(trainer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"validation_batch_size: an evaluation runs out of memory with {recipe.validation_batch_size} "
            "images at a time (0: as many as in a micro-batch); give a smaller number"
        ) from error


def _hints(recipe: Any, step: StepCost | None, memory_gb: float) -> list[str]:
    """What was not measured: another quantisation is another model to load."""
    if step is None or peak_of(step) > 0.9 * memory_gb:
        return [] if recipe.quantization == "nf4" else ["quantization: nf4 takes less memory (not measured)"]
    if recipe.quantization != "none" and peak_of(step) < 0.5 * memory_gb:
        return ["quantization: none has no weights to unpack, but takes more memory (not measured)"]
    return []


def print_plan(plan: Plan, evaluation_images: int, console: Console) -> None:
    """Tables of the step, the run and the alternatives, and what follows."""
    if plan.step is None:
        console.print(f"[bold red]does not fit[/bold red] into {plan.device_gb:.1f} GB on {plan.device}")
    else:
        console.print(step_table(plan))
        console.print(projection_table(plan, evaluation_images))
    if plan.alternatives:
        console.print(alternatives_table(plan))
    for line in plan.advice or ["none of the other settings is clearly faster"]:
        console.print(f"- {line}")


def step_table(plan: Plan) -> Table:
    """Time and memory of a step by phase."""
    step = plan.step
    table = Table(title=f"one step of {step.images} images on {plan.device}", title_justify="left")
    for column in ("phase", "seconds", "share", "peak memory"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in step.phases.items():
        peak = f"{step.peak_gb[name]:.2f} GB" if name in step.peak_gb else ""
        at_a_time = f" ({step.micro_batches[name]} images at a time)" if name in step.micro_batches else ""
        table.add_row(name + at_a_time, f"{seconds:.3f}", f"{seconds / step.seconds:.0%}", peak)
    table.add_section()
    of = f"{plan.peak_gb:.2f} of {plan.device_gb:.1f} GB"
    table.add_row(f"all ({step.images_per_s:.2f} images/s)", f"{step.seconds:.3f}", "100%", of)
    return table


def projection_table(plan: Plan, evaluation_images: int) -> Table:
    """Time of the whole run by what it is spent on."""
    schedule, projection = plan.schedule, plan.projection
    table = Table(title="the whole run", title_justify="left")
    table.add_column("what")
    table.add_column("time", justify="right")
    table.add_row("start: data and model", duration(projection.startup))
    table.add_row(f"{schedule.steps} steps", duration(projection.steps))
    if schedule.evaluations:
        what = f"{schedule.evaluations} evaluations of {evaluation_images} images"
        table.add_row(what, duration(projection.evaluations))
    what = f"{schedule.checkpoints} checkpoints and the output"
    table.add_row(what, duration(projection.checkpoints))
    table.add_section()
    table.add_row("[bold]all[/bold]", f"[bold]{duration(projection.total)}[/bold]")
    return table


def alternatives_table(plan: Plan) -> Table:
    """Other settings beside the recipe's own."""
    table = Table(title="other settings", title_justify="left")
    for column in ("setting", "images/s", "s/step", f"images per {plan.clock}", "peak memory"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for other in [Alternative({"the recipe": "as it is"}, plan.step), *plan.alternatives]:
        if other.cost is None:
            table.add_row(other.name, "does not fit", "", "", "")
            continue
        ratio = f"{plan.speed_of(other):.2f}x" if plan.step else ""
        speed, peak = f"{other.cost.images_per_s:.2f}", f"{peak_of(other.cost):.2f} GB"
        table.add_row(other.name, speed, f"{other.cost.seconds:.3f}", ratio, peak)
    return table


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as one reads them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
