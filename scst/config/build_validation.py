"""Builds the validation during training from a recipe."""

from __future__ import annotations

from scst.config.recipes import SCSTRecipe, SFTRecipe
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
