"""Command-line arguments: ``--config``, ``--key value`` overrides, ``--dry_run``, ``--plan``, file names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from scst.cli.launcher import Launch, take_launch_flags
from scst.config.keys import Recipe, types_of
from scst.config.reader import read_recipe_file, recipe_of
from scst.config.recipes import check_required
from scst.config.renamed_keys import current_names
from scst.errors import DataError, RecipeError, shown
from scst.files.yaml_reader import parse_yaml
from scst.training.run_folder.run_record import named_base_model, recorded_settings

R = TypeVar("R", bound=Recipe)

NEED_CONFIG = ("sft", "scst", "matrix")
"""Stages that need ``--config``: none begins with a recipe that nobody named."""
READ_FROM_ADAPTER = ("evaluate", "caption", "explain")
"""Stages that take their keys from the run that made the adapter where no recipe is given."""


@dataclass
class Arguments(Generic[R]):
    """A parsed command line."""

    recipe: R
    dry_run: bool = False
    plan: bool | str = False
    positional: list[str] = field(default_factory=list)
    launch: Launch | None = None
    remaining: list[str] = field(default_factory=list)
    """What the processes that ``launch`` starts are given."""


def is_training(recipe_class: type[Recipe]) -> bool:
    """Whether the recipe takes the names of ``transformers.TrainingArguments``."""
    return any(f.name == "training" for f in dataclasses.fields(recipe_class))


def parse(recipe_class: type[R], argv: Sequence[str]) -> Arguments[R]:
    """The recipe file, overridden by flags.

    `evaluate`, `caption` and `explain` without ``--config`` use what the adapter was trained with: the base
    model that its ``adapter_config.json`` names, and the settings of its ``run.json``.

    Raises:
        RecipeError: on a flag without value, an unknown key, a wrong value, or a missing recipe.
    """
    launch, remaining = take_launch_flags(recipe_class.stage, argv)
    flags, positional = _split_flags(remaining)
    config = flags.pop("config", None)
    dry_run = bool(flags.pop("dry_run", False))
    plan = _plan(flags.pop("plan", False), dry_run) if is_training(recipe_class) else False
    flags = current_names(flags)
    adapter = flags.get("adapter")
    if adapter is not None and "adapter" in types_of(recipe_class):
        adapter = types_of(recipe_class)["adapter"].convert("adapter", adapter)
    recipe = recipe_of(recipe_class, _base_settings(recipe_class, config, adapter) | flags)
    check_required(recipe)
    return Arguments(recipe, dry_run, plan, positional, launch, remaining)


def _plan(value: Any, dry_run: bool) -> bool | str:
    """What ``--plan`` asks for: nothing, the tables and JSON on the screen, or JSON in a file."""
    if value and dry_run:
        raise RecipeError("--plan and --dry_run exclude each other: a plan loads the model and runs steps")
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.endswith(".json") or Path(value).is_dir():
        raise RecipeError(f"--plan: expected nothing or a file to write, FILE.json; got {shown(value)}")
    return value


def _base_settings(recipe_class: type[Recipe], config: Any, adapter: str | None) -> dict[str, Any]:
    """What the flags override: the recipe file, or the run that made the adapter."""
    stage = recipe_class.stage
    if config is not None:
        if not isinstance(config, str):
            raise RecipeError(f"--config: expected one file or packaged recipe, got {shown(config)}")
        return read_recipe_file(config, stage=stage)
    if stage in NEED_CONFIG:
        raise RecipeError(
            "--config: missing; give a recipe file or the name of a packaged recipe, e.g. --config "
            "quickstart (a small model on rendered scenes)"
        )
    if stage not in READ_FROM_ADAPTER or adapter is None:
        return {}
    # an adapter may come from somebody else: it never says where to write
    keys = {f.name for f in dataclasses.fields(recipe_class)} - {"output_dir", "output", "adapter"}
    recorded = {"model_name_or_path": named_base_model(adapter)} | recorded_settings(adapter)
    return {name: value for name, value in recorded.items() if name in keys}


def _split_flags(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``--key value``, ``--key=value``, a bare ``--key`` (true), a repeated one (list); else positional."""
    flags: dict[str, Any] = {}
    positional: list[str] = []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            positional.append(argument)
            continue
        name, separator, text = argument[2:].partition("=")
        if not separator and name != "dry_run" and remaining and not remaining[0].startswith("--"):
            text, separator = remaining.pop(0), "="
        value = _value(name, text) if separator else True
        flags[name] = [*_listed(flags[name]), *_listed(value)] if name in flags else value
    return flags, positional


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(name: str, text: str) -> Any:
    if text == "-":  # standard input; to YAML an empty list entry
        return text
    try:
        return parse_yaml(text, text)
    except DataError as error:
        raise RecipeError(f"{name}: {error}") from error


def refuse_positional(arguments: Arguments[Any]) -> None:
    """Refuse positional arguments in a command that takes keys only, such as a key with a forgotten ``--``.

    Raises:
        RecipeError: naming the first one.
    """
    if arguments.positional:
        raise RecipeError(f"unexpected argument {arguments.positional[0]!r}: keys are given as --key value")
