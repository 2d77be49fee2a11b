"""Builders of experiment matrices: checks before anything runs, the runner, what is written at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scst.adapters.loading import check_adapter_exists
from scst.cli.arguments import ROOT
from scst.config import build, build_rl, build_sft
from scst.config.build_metrics import metric_settings
from scst.config.keys import default_of
from scst.config.reader import build_recipe
from scst.config.recipes import RECIPES
from scst.data.files import write_json, write_text
from scst.data.sources import check_layout
from scst.errors import RecipeError, RunStopped
from scst.experiments import results as measured
from scst.experiments import tables
from scst.experiments.figures import draw_figures
from scst.experiments.matrix_page import matrix_html
from scst.experiments.matrix_plan import EVALUATE, Plan, Run, make_plan
from scst.experiments.runner import Outcome, Runner
from scst.metrics.bootstrap import check_metrics
from scst.metrics.suite import METRICS, NOVELTY
from scst.models.loading import check_model_exists

SCRIPTS = {
    "sft": ROOT / "launch" / "sft.py",
    "scst": ROOT / "launch" / "scst.py",
    EVALUATE: ROOT / "launch" / "evaluations.py",
}
FIGURES = "figures"


def checked_plan(recipe: Any) -> Plan:
    """The plan of a matrix, with everything checked that needs no model and no training.

    Raises:
        RecipeError, DataError: naming the run and the key.
    """
    build.prepare_libraries()
    plan = make_plan(recipe)
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
    """One run; what many of them share is looked at once."""
    recipe = build_recipe(run.stage, dict(run.keys))
    checks = {f"dataset {recipe.dataset}": lambda: check_layout(recipe.dataset)}
    if recipe.model_name_or_path:
        checks[f"model {recipe.model_name_or_path}"] = lambda: check_model_exists(recipe.model_name_or_path)
    if recipe.adapter and not run.after:
        checks[f"adapter {recipe.adapter}"] = lambda: check_adapter_exists(recipe.adapter)
    if run.stage == "sft":
        build_sft.check_settings(recipe)
    elif run.stage == "scst":
        build_rl.check_settings(recipe)
        build_rl.build_reward(recipe).close()
    else:
        names = [name for name in recipe.metrics if name not in NOVELTY]
        checks[f"metrics {names}"] = lambda: check_metrics(
            names, metric_settings(recipe), columns=("images", "ended_by_eos")
        )
    for what, check in checks.items():
        if what not in seen:
            check()
            seen.add(what)


def print_plan(plan: Plan) -> None:
    """The plan as YAML: every training and evaluation with its state, and the keys that are not defaults."""
    content = {
        "trainings": [_described(run) for run in plan.trainings],
        "evaluations": [_described(run) for run in plan.evaluations],
        "cells": [
            {k: v for k, v in result.keys().items() if v is not None}
            | {"folder": result.cell.run.folder.name}
            for result in measured.collect(plan, {})
        ],
    }
    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110), end="")


def _described(run: Run) -> dict[str, Any]:
    recipe_class = RECIPES[run.stage]
    own = {field.name for field in dataclasses.fields(recipe_class)}
    keys = {k: v for k, v in run.keys.items() if k not in own or v != default_of(recipe_class, k)}
    keys = {k: v for k, v in keys.items() if k not in ("output_dir", "resume", "overwrite")}
    after = {"after": run.after.folder.name} if run.after else {}
    return {"folder": run.folder.name, "stage": run.stage, "state": run.state, **after, "keys": keys}


def run_matrix(recipe: Any, plan: Plan) -> None:
    """Run what is missing, write the tables after every model, and figures and page at the end.

    Raises:
        RunStopped: when cells have failed; everything else is done and written.
    """
    console, root = build.make_console(), Path(recipe.output_dir)
    runner = Runner(SCRIPTS, recipe.launcher, console)
    outcome = runner.run(plan, root, lambda so_far: write_tables(recipe, plan, so_far.errors))
    results = write_tables(recipe, plan, outcome.errors)
    write_figures(recipe, plan, results)
    rows = measured.rows_of(results)
    console.print(tables.rich_table(_title(recipe), rows, measured.metric_names(results)))
    console.print(f"{_summary(results, outcome)}; {root / 'matrix.html'}")
    failed = [result for result in results if result.state != "complete"]
    if failed:
        names = "\n".join(f"  {tables.label(result)}: {result.error}" for result in failed)
        raise RunStopped(f"{len(failed)} of {len(results)} cells have no result:\n{names}")


def _summary(results: list[measured.Result], outcome: Outcome) -> str:
    complete = sum(result.state == "complete" for result in results)
    trained = f"{len(outcome.seconds)} trainings in {sum(outcome.seconds.values()):.0f} s"
    return f"{complete} of {len(results)} cells complete, {trained}"


def _title(recipe: Any) -> str:
    return f"Matrix {Path(recipe.output_dir).name}"


def write_tables(recipe: Any, plan: Plan, errors: Mapping[Path, str]) -> list[measured.Result]:
    """``matrix.md``, ``matrix.csv`` and ``matrix.json`` of what there is; returns the cells."""
    root, results = Path(recipe.output_dir), measured.collect(plan, errors)
    rows = measured.rows_of(results)
    metric = measured.main_metric_of(results, recipe.main_metric)
    robustness = measured.robustness_of(rows, metric) if metric else []
    write_text(root / "matrix.md", tables.markdown(_title(recipe), results, rows, robustness, metric))
    write_text(root / "matrix.csv", tables.csv_text(results))
    content = tables.json_content(results, rows, robustness, metric, measured.trainings_table(plan))
    write_json(root / "matrix.json", content)
    return results


def write_figures(recipe: Any, plan: Plan, results: list[measured.Result]) -> None:
    """The PNG files and ``matrix.html``."""
    root, rows = Path(recipe.output_dir), measured.rows_of(results)
    metric = measured.main_metric_of(results, recipe.main_metric)
    robustness = measured.robustness_of(rows, metric) if metric else []
    names = measured.metric_names(results)
    figures = draw_figures(rows, robustness, names, metric, root / FIGURES)
    trainings = measured.trainings_table(plan)
    page = matrix_html(_title(recipe), results, rows, robustness, metric, trainings, figures, root / FIGURES)
    write_text(root / "matrix.html", page)
