"""Builds a training stage from its recipe, and runs or plans it: what both stages do in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import transformers
from rich.console import Console

from scst.adapters.loaded import LoadedPolicy
from scst.config import build, measured_plan
from scst.config.checks import base_model_of
from scst.config.reader import resolved
from scst.config.recipes import SCSTRecipe, SFTRecipe
from scst.data.load_splits import LoadedData
from scst.training.hooks import TrainerHooks
from scst.training.run import run_training
from scst.training.run_folder.changed_settings import settings_record
from scst.training.run_folder.claim import claimed_output
from scst.training.run_folder.resumed_run import check_resumed
from scst.training.run_folder.run_record import Run

R = TypeVar("R", SFTRecipe, SCSTRecipe)
T = TypeVar("T", bound=TrainerHooks)


def run_recipe(
    recipe: R,
    build_trainer: Callable[[R, LoadedPolicy, LoadedData, Console], T],
    arguments_class: type[transformers.TrainingArguments],
    *,
    plan: bool | str,
    started: float,
    prepare: Callable[[LoadedData], object] = lambda data: None,
) -> T | None:
    """Check, load, build and train, in this order; returns the trainer, None after a plan.

    An earlier run in the output folder is changed by none of it before training begins.

    Args:
        recipe: checked as far as this needs neither data nor model.
        build_trainer: builds the trainer of the stage.
        arguments_class: of the trainer's arguments.
        plan: as of ``--plan``; False to train.
        started: ``time.time()`` at the start of the command.
        prepare: called once with the data, before a trainer is built.

    Raises:
        ScstError: when something cannot be used.
    """
    console = build.make_console(quiet=bool(plan))
    base = base_model_of(recipe)
    full_recipe = recipe
    with (
        measured_plan.recipe_to_run(recipe, plan) as recipe,
        claimed_output(
            recipe.output_dir, resume=recipe.resume, overwrite=recipe.overwrite, console=console
        ) as output,
    ):
        if output.checkpoint:  # the fingerprint of the data is compared when they are loaded
            check_resumed(
                output.checkpoint,
                settings_record(recipe.stage, resolved(recipe), ""),
                arguments_class,
                insist=recipe.resume_changed,
                console=Console(quiet=True),
            )
        data = build.load_data(recipe, build.training_splits(recipe), console)
        policy = build.build_policy(recipe, base, trainable=True)
        prepare(data)
        build.preview(recipe, data, policy, console)

        def trainer_of(recipe: R) -> T:
            return build_trainer(recipe, policy, data, console)

        if plan:
            measured_plan.print_plan_of(recipe, full_recipe, trainer_of, data, plan, started=started)
            return None
        trainer = trainer_of(recipe)
        run_training(trainer, run_of(recipe, data, started), output, console)
        return trainer


def run_of(recipe: SFTRecipe | SCSTRecipe, data: LoadedData, started: float) -> Run:
    """The run that a recipe describes."""
    return Run(
        recipe.stage,
        resolved(recipe),
        data.fingerprint,
        {name: len(rows) for name, rows in data.splits.items()},
        resume_changed=recipe.resume_changed,
        save_minutes=recipe.save_minutes,
        started=started,
    )
