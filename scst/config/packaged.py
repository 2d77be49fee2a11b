"""Finds recipes and accelerate configurations of the package by name: ``rsicd/sft``, ``cpu``."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

import scst
from scst.errors import RecipeError, shown

PACKAGE = Path(scst.__file__).parent
RECIPES_FOLDER = next(
    (folder for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if folder.is_dir()),
    PACKAGE / "recipes",
)
"""The folder of recipes: ``recipes`` in an installed package, ``../recipes`` in a clone."""
ACCELERATE = "accelerate"
_LONGEST_NAME = 100
"""Of recipes; to longer ones no similar names are looked for."""


def recipe_names() -> list[str]:
    """Names of all packaged recipes: paths relative to the folder of recipes, without ``.yaml``."""
    files = (path.relative_to(RECIPES_FOLDER) for path in RECIPES_FOLDER.rglob("*.yaml"))
    return sorted(
        path.with_suffix("").as_posix()
        for path in files
        if path.parts[0] != ACCELERATE and not path.name.startswith("_")  # a part of other recipes
    )


def accelerate_names() -> list[str]:
    """Names of all packaged accelerate configurations."""
    return sorted(path.stem for path in (RECIPES_FOLDER / ACCELERATE).glob("*.yaml"))


def find_recipe(name: str | Path, *, place: str = "--config", stage: str | None = None) -> Path:
    """The path of a recipe: the file ``name`` if it exists, else the packaged recipe of that name.

    A folder of packaged recipes stands for the one that a stage has in it: ``quickstart`` is
    ``quickstart/sft`` for ``scst sft``.

    Args:
        name: a file, or a name such as ``rsicd/sft``.
        place: the flag or key that names it, for the error.
        stage: whose recipe is looked for in a folder.

    Raises:
        RecipeError: there is neither; the message suggests similar names.
    """
    path, text = Path(name), str(name)
    try:
        if path.exists() and not path.is_dir():
            return path
        named = RECIPES_FOLDER / f"{text.removesuffix('.yaml')}.yaml"
        for packaged in (named, RECIPES_FOLDER / text / f"{stage}.yaml"):
            if not path.is_absolute() and packaged.is_file():
                return packaged
        if path.is_dir():
            return path
    except OSError as error:  # a name that no file system can hold
        raise RecipeError(f"{place}: {shown(text)} is no name of a file: {error.strerror}") from error
    hint = _hint(text, recipe_names()) if len(text) < _LONGEST_NAME else ""
    raise RecipeError(f"{place}: there is no file {shown(text)}, and no packaged recipe of that name{hint}")


def find_accelerate_config(name: str) -> Path:
    """The path of a configuration: the file ``name`` if it exists, else the packaged one of that name.

    Raises:
        RecipeError: there is neither; the message lists the packaged ones.
    """
    packaged = RECIPES_FOLDER / ACCELERATE / f"{name.removesuffix('.yaml')}.yaml"
    for path in (Path(name), packaged):
        with contextlib.suppress(OSError):  # a name that no file system can hold
            if path.is_file():
                return path
    known = ", ".join(accelerate_names())
    raise RecipeError(
        f"--accelerate_config: there is no file {shown(name)}; packaged configurations: {known}"
    )


def _hint(name: str, known: list[str]) -> str:
    """Suggestions for the error: known names that are similar, or that end in the same part."""
    wanted = name.removesuffix(".yaml")
    last = wanted.rpartition("/")[2]
    close = difflib.get_close_matches(wanted, known, n=3)
    others = [other for other in known if other.rpartition("/")[2] == last]
    first = [other for other in others if other.startswith("quickstart/")]
    close = list(dict.fromkeys([*first, *close, *others]))
    return f"; did you mean {', '.join(close[:4])}?" if close else ""
