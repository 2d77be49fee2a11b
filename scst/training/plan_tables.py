"""Prints a plan as tables."""

from __future__ import annotations

import math

from rich.console import Console

from scst.data.terminal import PlainTable, plain
from scst.training.plan import Alternative, Plan, Projection, Schedule, StepCost, peak_of


def print_plan(plan: Plan, evaluation_images: int, console: Console) -> None:
    """Print tables of the step, the run and the alternatives, then the advice."""
    if plan.step is None or plan.projection is None:
        console.print(plain(f"does not fit into {plan.device_gb:.1f} GB on {plan.device}", "bold red"))
    else:
        console.print(step_table(plan, plan.step))
        console.print(projection_table(plan.schedule, plan.projection, evaluation_images))
    if plan.alternatives:
        console.print(alternatives_table(plan))
    for line in plan.advice or ["none of the other settings is clearly faster"]:
        console.print(plain(f"- {line}"))


def step_table(plan: Plan, step: StepCost) -> PlainTable:
    """Time and memory of a step by phase."""
    table = PlainTable(title=f"one step of {step.images} images on {plan.device}", title_justify="left")
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


def projection_table(schedule: Schedule, projection: Projection, evaluation_images: int) -> PlainTable:
    """Projected time of the whole run by what it is spent on."""
    table = PlainTable(title="the whole run", title_justify="left")
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
    table.add_row(plain("all", "bold"), plain(duration(projection.total), "bold"))
    return table


def alternatives_table(plan: Plan) -> PlainTable:
    """Speed and memory of the alternatives, with the recipe as the first row."""
    table = PlainTable(title="other settings", title_justify="left")
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
    """Seconds as text in readable units: ``1.5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
