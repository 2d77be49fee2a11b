"""``--dry_run``: the resolved recipe on standard output, after every check that needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

from scst.cli.arguments import Arguments
from scst.config.keys import Recipe
from scst.config.reader import resolved
from scst.config.recipes import DataRecipe

D = TypeVar("D", bound=DataRecipe)


def answer_dry_run(arguments: Arguments[D]) -> bool:
    """On ``--dry_run`` check the dataset's layout and print it with the recipe; True when that was all.

    Raises:
        DataError: on a dataset that cannot be read.
    """
    if arguments.dry_run:
        from scst.data.sources import check_layout

        print_dry_run(arguments.recipe, check_layout(str(arguments.recipe.dataset)))
    return arguments.dry_run


def print_dry_run(recipe: Recipe, layout: Mapping[str, Any]) -> None:
    """Print the resolved recipe as YAML, with what was found in the dataset as comments."""
    for name, value in layout.items():
        print(f"# dataset {name}: {value}")
    print(yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True), end="")
