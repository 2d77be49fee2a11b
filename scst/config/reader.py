"""Reads recipes: flat YAML files. The command line, or a recipe that extends another, overrides any key.

The keys are those of :mod:`scst.config.recipes`. Training stages also take every name of
``transformers.TrainingArguments``. Each value is checked against the type and range that its name was
declared with (:mod:`scst.training.arguments.value_types`), without importing torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scst.config.keys import Recipe, types_of
from scst.config.packaged import find_recipe
from scst.config.recipes import RECIPES
from scst.config.renamed_keys import current_names
from scst.errors import DataError, RecipeError, shown
from scst.files.yaml_reader import read_yaml
from scst.training.arguments.argument_checks import argument_names, check_arguments, convert_argument

R = TypeVar("R", bound=Recipe)


def recipe_of(recipe_class: type[R], settings: Mapping[str, Any]) -> R:
    """Build the recipe of a command from flat keys.

    Args:
        recipe_class: a class of :mod:`scst.config.recipes`.
        settings: keys and values, as read from YAML and flags.

    Raises:
        RecipeError: on an unknown key or a wrong value; the message names the key.
    """
    is_training = "training" in _fields(recipe_class)
    types = types_of(recipe_class)
    own: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, value in current_names(settings).items():
        if name in types:
            own[name] = types[name].convert(name, value)
        elif is_training and name in argument_names():
            training[name] = convert_argument(name, value)
        elif is_training or name not in _all_keys():
            raise _unknown_key(recipe_class, name)
    _check_prompts(own.get("prompts", []))
    if is_training:
        _check_trained_prompts(own.get("prompts", []))
        check_arguments(training)
    return recipe_class(**own, **({"training": training} if is_training else {}))


def build_recipe(stage: str, settings: Mapping[str, Any]) -> Recipe:
    """Build the recipe of a stage that is named by text; see :func:`recipe_of`."""
    return recipe_of(RECIPES[stage], settings)


def _check_prompts(prompts: list[str]) -> None:
    """Refuse a repeated instruction: it would be drawn twice as often."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt in seen:
            raise RecipeError(f"prompts: {shown(prompt)} stands there twice; give each once")
        seen.add(prompt)


def _check_trained_prompts(prompts: list[str]) -> None:
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        raise RecipeError(
            f"prompts: {shown(blank[0])} is empty; give texts, or leave prompts out and write prompt: ''"
        )


def read_recipe_file(name: str | Path, *, stage: str | None = None) -> dict[str, Any]:
    """Read the flat keys of a YAML file, merged over those of the files that it extends.

    ``extends: other.yaml`` takes the keys of another recipe as defaults: a file relative to the one that
    names it, or a packaged recipe. In a list of files, later ones override earlier ones.

    Args:
        name: a file, or the name of a packaged recipe (``rsicd/sft``).
        stage: whose recipe is meant by the name of a folder of them (``rsicd``).

    Raises:
        RecipeError: when a file is missing, is not YAML or not a flat mapping, or extends itself.
    """
    return _read_recipe_file(find_recipe(name, stage=stage), ())


def _read_recipe_file(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    own = current_names(_read_yaml(path, readers))
    names = own.pop("extends", [])
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"extends: expected a file or a list of files in {str(path)!r}, got {shown(names)}")
    settings: dict[str, Any] = {}
    for name in names:
        settings |= _read_recipe_file(_extended(name, path), (*readers, path))
    return settings | own


def _extended(name: str, reader: Path) -> Path:
    beside = reader.parent / name
    try:
        if beside.is_file():
            return beside
    except OSError as error:  # a name that no file system can hold
        raise RecipeError(f"extends: {shown(name)} is no name of a file: {error.strerror}") from error
    try:
        return find_recipe(name, place=f"extends (in {str(reader)!r})")
    except RecipeError:
        return beside  # reading it fails with an error that names the path the user meant


def _read_yaml(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    place = f"extends (in {str(readers[-1])!r})" if readers else "--config"
    if path.resolve() in [reader.resolve() for reader in readers]:
        raise RecipeError(f"{place}: {str(path)!r} extends itself")
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise RecipeError(f"{place}: there is no file {shown(str(path))}") from error
    except DataError as error:
        raise RecipeError(f"{place}: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise RecipeError(
            f"{place}: {str(path)!r} must hold `key: value` lines, got a {type(content).__name__}"
        )
    return content or {}


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The flat keys of a recipe, defaults included. ``build_recipe`` makes the same recipe from them."""
    settings = dataclasses.asdict(recipe)
    return settings | settings.pop("training", {})


@functools.cache
def _all_keys() -> frozenset[str]:
    """Every key of every stage, training arguments included."""
    own = {name for recipe in RECIPES.values() for name in _fields(recipe)} - {"training"}
    return frozenset(own | set(argument_names()))


def _unknown_key(recipe_class: type[Recipe], name: str) -> RecipeError:
    command = f"scst {recipe_class.command}"
    owners = [f"scst {other.command}" for other in RECIPES.values() if name in _fields(other)]
    if owners:
        return RecipeError(f"{name}: a key of `{owners[0]}`, not of `{command}`")
    if not name.isprintable() or len(name) > 100:
        return RecipeError(f"{shown(name)}: unknown key; see {command} --help")
    others = argument_names() if "training" in _fields(recipe_class) else _all_keys()
    known = set(_fields(recipe_class)) - {"training"} | set(others)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"see {command} --help"
    return RecipeError(f"{name}: unknown key; {hint}")


def _fields(recipe_class: type[Recipe]) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(recipe_class)}
