"""Builds the validation during training, and the description of a run, from a recipe."""

from __future__ import annotations

from scst.config.reader import resolved
from scst.config.recipes import SCSTRecipe, SFTRecipe
from scst.data.load_splits import LoadedData
from scst.training.run import Run
from scst.training.validation import ValidationSettings, early_stopping


def validation_of(recipe: SFTRecipe | SCSTRecipe) -> ValidationSettings:
    """Build the settings of the evaluations during training.

    Raises:
        RecipeError: when early stopping is asked for without evaluations.
    """
    settings = ValidationSettings(
        split=recipe.eval_split,
        images=recipe.validation_images,
        batch_size=recipe.validation_batch_size,
        seed=recipe.split_seed,
        early_stopping_patience=recipe.early_stopping_patience,
    )
    early_stopping(settings, recipe.training)
    return settings


def run_of(stage: str, recipe: SFTRecipe | SCSTRecipe, data: LoadedData, started: float) -> Run:
    """The run that a recipe describes."""
    return Run(
        stage,
        resolved(recipe),
        data.fingerprint,
        {name: len(rows) for name, rows in data.splits.items()},
        resume=recipe.resume,
        save_minutes=recipe.save_minutes,
        started=started,
    )
