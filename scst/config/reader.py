"""Reads recipes: flat YAML files. The command line, or a recipe that extends another, overrides any key.

The keys are those of :mod:`scst.config.recipes`. Training stages also take every name of
``transformers.TrainingArguments``. Those names are parsed from the library's source: importing torch and
transformers would take seconds before a typo could be reported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from scst.config.keys import Recipe
from scst.config.packaged import find_recipe
from scst.config.recipes import RECIPES
from scst.config.renamed_keys import current_names
from scst.errors import RecipeError

OWNED_TRAINING_ARGUMENTS = {
    "bf16": "precision",
    "fp16": "precision",
    "resume_from_checkpoint": "resume",
    "remove_unused_columns": None,
    "label_names": None,
    "predict_with_generate": None,
    "do_train": None,
    "do_eval": None,
    "do_predict": None,
}
"""TrainingArguments that a recipe may not set -> the key to use instead; None when the project sets it."""


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
    own: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, value in current_names(settings).items():
        if name in _fields(recipe_class) and name != "training":
            own[name] = _convert(name, value, recipe_class)
        elif is_training:
            training[name] = _training_argument(recipe_class, name, value)
        elif name not in _all_keys():
            raise _unknown_key(recipe_class, name)
    _check_prompts(own.get("prompts", []))
    if is_training:
        _check_trained_prompts(own.get("prompts", []))
    return recipe_class(**own, **({"training": training} if is_training else {}))


def build_recipe(stage: str, settings: Mapping[str, Any]) -> Recipe:
    """Build the recipe of a stage that is named by text; see :func:`recipe_of`."""
    return recipe_of(RECIPES[stage], settings)


def _check_prompts(prompts: list[Any]) -> None:
    """Refuse instructions that are no texts, or repeated: a repeated one would be drawn twice as often."""
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise RecipeError(f"prompts: expected a list of texts, got {prompt!r} in it")
        if prompts.count(prompt) > 1:
            raise RecipeError(f"prompts: {prompt!r} stands there twice; give each once")


def _check_trained_prompts(prompts: list[str]) -> None:
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        raise RecipeError(
            f"prompts: {blank[0]!r} is empty; give texts, or leave prompts out and write prompt: ''"
        )


def read_recipe_file(name: str | Path) -> dict[str, Any]:
    """Read the flat keys of a YAML file, merged over those of the files that it extends.

    ``extends: other.yaml`` takes the keys of another recipe as defaults: a file relative to the one that
    names it, or a packaged recipe. In a list of files, later ones override earlier ones.

    Args:
        name: a file, or the name of a packaged recipe (``rsicd/sft``).

    Raises:
        RecipeError: when a file is missing, is not YAML or not a flat mapping, or extends itself.
    """
    return _read_recipe_file(find_recipe(name), ())


def _read_recipe_file(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    own = current_names(_read_yaml(path, readers))
    names = own.pop("extends", [])
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"extends: expected a file or a list of files in {str(path)!r}, got {names!r}")
    settings: dict[str, Any] = {}
    for name in names:
        settings |= _read_recipe_file(_extended(name, path), (*readers, path))
    return settings | own


def _extended(name: str, reader: Path) -> Path:
    beside = reader.parent / name
    if beside.is_file():
        return beside
    try:
        return find_recipe(name, place=f"extends (in {str(reader)!r})")
    except RecipeError:
        return beside  # reading it fails with an error that names the path the user meant


def _read_yaml(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    place = f"extends (in {str(readers[-1])!r})" if readers else "--config"
    if path.resolve() in [reader.resolve() for reader in readers]:
        raise RecipeError(f"{place}: {str(path)!r} extends itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{place}: there is no file {str(path)!r}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{place}: {str(path)!r} is no readable YAML file: {error}") from error
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
def training_argument_names() -> dict[str, str]:
    """Name -> annotation of every field of the installed ``transformers.TrainingArguments``."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise RecipeError("transformers is not installed: pip install transformers")
    folder = Path(spec.origin).parent
    tree = ast.parse((folder / "training_args.py").read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }


def _training_argument(recipe_class: type[Recipe], name: str, value: Any) -> Any:
    if name in OWNED_TRAINING_ARGUMENTS:
        instead = OWNED_TRAINING_ARGUMENTS[name]
        advice = f"use `{instead}`" if instead else "the project sets it"
        raise RecipeError(f"{name}: not a recipe key; {advice}")
    if name not in training_argument_names():
        raise _unknown_key(recipe_class, name)
    annotation = training_argument_names()[name]
    if value is False and "Strategy" in annotation:
        return "no"  # YAML reads a bare `no` as false
    for kind in (int, float):
        if kind.__name__ in annotation and isinstance(value, str):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


@functools.cache
def _all_keys() -> frozenset[str]:
    """Every key of every stage, training arguments included."""
    own = {name for recipe in RECIPES.values() for name in _fields(recipe)} - {"training"}
    return frozenset(own | set(training_argument_names()))


def _unknown_key(recipe_class: type[Recipe], name: str) -> RecipeError:
    command = f"scst {recipe_class.command}"
    owners = [f"scst {other.command}" for other in RECIPES.values() if name in _fields(other)]
    if owners:
        return RecipeError(f"{name}: a key of `{owners[0]}`, not of `{command}`")
    others = training_argument_names() if "training" in _fields(recipe_class) else _all_keys()
    known = set(_fields(recipe_class)) - {"training"} | set(others)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"see {command} --help"
    return RecipeError(f"{name}: unknown key; {hint}")


def _fields(recipe_class: type[Recipe]) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(recipe_class)}


def _convert(name: str, value: Any, recipe_class: type[Recipe]) -> Any:
    """Convert a value to the type of its key: YAML reads 1e-5 as text, and flags are text."""
    annotation = typing.get_type_hints(recipe_class)[name]
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = [typing.get_origin(member) or member for member in members]  # list of list[str]
    choices = _fields(recipe_class)[name].metadata["choices"]
    if choices and value not in choices:
        raise RecipeError(f"{name}: must be one of {', '.join(choices)}; got {value!r}")
    if list in kinds and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    for kind in kinds:
        if kind is types.NoneType and value is None:
            return None
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return _number(value, kind)
            except ValueError:
                continue
    expected = " or ".join("nothing" if kind is types.NoneType else kind.__name__ for kind in kinds)
    raise RecipeError(f"{name}: expected {expected}, got {value!r}")


def _number(value: int | float | str, kind: type) -> int | float:
    number = float(value)
    if kind is int and number != int(number):
        raise ValueError
    return kind(number)
