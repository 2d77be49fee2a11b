"""Builds the plan of a matrix recipe, checks all of it before anything runs, and runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from scst.config.build_metrics import check_settings
from scst.config.build_rewards import build_reward
from scst.config.checks import check_recipe
from scst.config.keys import default_of
from scst.config.reader import (
    build_recipe,
    read_recipe_file,
    resolved,
)
from scst.config.recipes import (
    RECIPES,
    EvaluateRecipe,
    MatrixRecipe,
    SCSTRecipe,
    SFTRecipe,
    required_dataset,
)
from scst.data.sources import check_layout
from scst.data.visible import yaml_text
from scst.errors import RecipeError
from scst.experiments import matrix_run
from scst.experiments.launchers import launcher_command
from scst.experiments.matrix_plan import Axes, Plan, Run, make_plan
from scst.experiments.results import collect
from scst.experiments.stage_keys import EVALUATE
from scst.metrics.suite import METRICS
from scst.training.arguments.argument_checks import argument_names
from scst.training.run_folder.run_record import recorded_settings
from scst.training.secrets import without_secrets

SCRIPTS = {
    "sft": ["-m", "scst.cli.sft"],
    "scst": ["-m", "scst.cli.rl"],
    EVALUATE: ["-m", "scst.cli.evaluations"],
}


class RecipeKeys:
    """:class:`scst.experiments.stage_keys.StageKeys` of the recipes of this package."""

    def knows(self, stage: str, name: str) -> bool:
        """Whether a key is one of that stage's recipe, or a training argument of a training stage."""
        own = {field.name for field in dataclasses.fields(RECIPES[stage])}
        return name in own - {"training"} or ("training" in own and name in argument_names())

    def complete(self, stage: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        """All keys of the recipe that these keys make, defaults included."""
        return resolved(build_recipe(stage, dict(keys)))

    def read_file(self, path: str) -> dict[str, Any]:
        """The keys of a recipe file."""
        return read_recipe_file(path)

    def trained_with(self, adapter: str) -> dict[str, Any]:
        """The keys that an adapter was trained with, from its ``run.json``."""
        return recorded_settings(adapter)


def plan_of(recipe: MatrixRecipe) -> Plan:
    """Make the plan of a matrix recipe. Reads recipe files; loads no model.

    Raises:
        RecipeError: naming the model and the key.
    """
    axes = Axes(recipe.prompts, recipe.decodings, _as_list(recipe.max_new_tokens), _as_list(recipe.seeds))
    return make_plan(
        recipe.models,
        axes,
        RecipeKeys(),
        output_dir=recipe.output_dir,
        common=recipe.common,
        evaluate=recipe.evaluate,
    )


def _as_list(value: Sequence[int] | int) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def checked_plan(recipe: MatrixRecipe, *, any_launcher: bool = False) -> Plan:
    """Make the plan of a matrix and check all that can be checked without a model or training.

    Args:
        recipe: of the matrix.
        any_launcher: whether its ``launcher`` may be any program.

    Raises:
        RecipeError, DataError: naming the run and the key.
    """
    launcher_command(recipe.launcher, any_program=any_launcher)
    plan = plan_of(recipe)
    if recipe.main_metric not in METRICS:
        raise RecipeError(f"main_metric: unknown {recipe.main_metric!r}; known are {', '.join(METRICS)}")
    seen: set[str] = set()
    for run in (*plan.trainings, *plan.evaluations):
        try:
            _check(run, seen)
        except RecipeError as error:
            raise RecipeError(f"{run.folder.name}: {error}") from error
    return plan


def _check(run: Run, seen: set[str]) -> None:
    """Check one run. Checks that several runs share are named in ``seen`` and run once."""
    recipe = build_recipe(run.stage, run.keys)
    if not isinstance(recipe, SFTRecipe | SCSTRecipe | EvaluateRecipe):
        raise TypeError(f"a matrix runs the stages sft, scst and evaluate, not {run.stage}")
    # after a training of this matrix the adapter does not exist yet
    check_recipe(recipe, has_adapter=not run.after)
    checks: dict[str, Callable[[], object]] = {
        f"dataset {recipe.dataset}": partial(check_layout, required_dataset(recipe.dataset))
    }
    if isinstance(recipe, SCSTRecipe):
        build_reward(recipe).close()
    elif isinstance(recipe, EvaluateRecipe):
        checks[f"metrics {recipe.metrics}"] = partial(check_settings, recipe)
    for what, check in checks.items():
        if what not in seen:
            check()
            seen.add(what)


def print_plan(plan: Plan) -> None:
    """Print the plan as YAML: every run with its state, and with the keys that differ from their defaults."""
    content = {
        "trainings": [_described(run) for run in plan.trainings],
        "evaluations": [_described(run) for run in plan.evaluations],
        "cells": [
            {k: v for k, v in result.keys().items() if v is not None}
            | {"folder": result.cell.run.folder.name}
            for result in collect(plan, {})
        ],
    }
    print(yaml_text(without_secrets(content)), end="")


def _described(run: Run) -> dict[str, Any]:
    recipe_class = RECIPES[run.stage]
    own = {field.name for field in dataclasses.fields(recipe_class)}
    keys = {k: v for k, v in run.keys.items() if k not in own or v != default_of(recipe_class, k)}
    keys = {k: v for k, v in keys.items() if k not in ("output_dir", "resume", "overwrite")}
    after = {"after": run.after.folder.name} if run.after else {}
    return {"folder": run.folder.name, "stage": run.stage, "state": run.state, **after, "keys": keys}


def run_matrix(recipe: MatrixRecipe, plan: Plan, *, any_launcher: bool = False) -> None:
    """Run the trainings and evaluations that are missing, and write tables, figures and page.

    Args:
        recipe, any_launcher: as of :func:`checked_plan`.
        plan: what it returned.

    Raises:
        RunStopped: when cells have failed; everything else is done and written.
    """
    from scst.config import build  # imports torch

    build.prepare_libraries()
    matrix_run.run_matrix(
        plan,
        recipe.output_dir,
        scripts=SCRIPTS,
        main_metric=recipe.main_metric,
        launcher=launcher_command(recipe.launcher, any_program=any_launcher),
        console=build.make_console(),
    )
