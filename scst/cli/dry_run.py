"""``--dry_run``: the resolved recipe on standard output, after every check that needs no model or torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from scst.cli.arguments import Arguments
from scst.config.keys import Recipe
from scst.config.reader import resolved
from scst.config.recipes import DataRecipe, EvaluateRecipe, SCSTRecipe, SFTRecipe
from scst.data.fractions import refuse_to_resplit
from scst.data.visible import visible, yaml_text
from scst.errors import RecipeError
from scst.training.arguments.argument_checks import evaluates
from scst.training.secrets import without_secrets

D = TypeVar("D", bound=DataRecipe)


def answer_dry_run(arguments: Arguments[D]) -> bool:
    """On ``--dry_run`` check rewards, metrics and the dataset's layout, and print it with the recipe.

    Returns:
        True when that was all there is to do.

    Raises:
        RecipeError: on a reward, metric or split that cannot be used.
        DataError: on a dataset that cannot be read.
    """
    if not arguments.dry_run:
        return False
    from scst.data.sources import check_layout

    recipe = arguments.recipe
    if isinstance(recipe, SCSTRecipe):
        from scst.config.build_rewards import build_reward

        build_reward(recipe).close()
    if isinstance(recipe, EvaluateRecipe):
        from scst.config.build_metrics import check_settings

        check_settings(recipe)
    layout = check_layout(str(recipe.dataset))
    _check_splits(recipe, layout["splits"])
    print_dry_run(recipe, layout)
    return True


def _check_splits(recipe: DataRecipe, there: Mapping[str, Any]) -> None:
    """Refuse splits that the dataset does not have, where its layout tells, and to discard those it has."""
    if recipe.split_fractions is not None:
        if not recipe.resplit:
            refuse_to_resplit(there)
        return
    if not any(there):
        return
    names = {"train_split": recipe.train_split}
    if isinstance(recipe, SFTRecipe | SCSTRecipe) and evaluates(recipe.training):
        names["eval_split"] = recipe.eval_split
    elif isinstance(recipe, EvaluateRecipe):
        names = {"eval_split": recipe.eval_split}
    for key, name in names.items():
        missing = [part for part in name.split("+") if part not in there]
        if missing:
            raise RecipeError(f"{key}: there is no split {missing[0]!r}; the dataset has {', '.join(there)}")


def print_dry_run(recipe: Recipe, layout: Mapping[str, Any]) -> None:
    """Print the resolved recipe as YAML, with what was found in the dataset as comments."""
    for name, value in layout.items():
        print(visible(f"# dataset {name}: {value}"))
    print(yaml_text(without_secrets(resolved(recipe))), end="")
