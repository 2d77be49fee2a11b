"""Builds the supervised stage from its recipe."""

from __future__ import annotations

from rich.console import Console
from trl import SFTConfig

from scst.adapters.loaded import LoadedPolicy
from scst.config.build_validation import validation_of
from scst.config.recipes import SFTRecipe
from scst.data.load_splits import LoadedData
from scst.sft.finetune import sft_trainer
from scst.sft.trainer import CaptionSFTTrainer
from scst.training.arguments.training_arguments import training_arguments


def check_training_arguments(recipe: SFTRecipe) -> None:
    """Refuse training arguments that the library refuses on this machine.

    Raises:
        RecipeError: naming them.
    """
    settings = recipe.training
    training_arguments(SFTConfig, recipe.output_dir, settings, seed=recipe.seed, precision=recipe.precision)


def build_trainer(
    recipe: SFTRecipe, policy: LoadedPolicy, data: LoadedData, console: Console
) -> CaptionSFTTrainer:
    """Build the trainer that a recipe describes."""
    return sft_trainer(
        policy,
        data,
        recipe.output_dir,
        train_split=recipe.train_split,
        caption_policy=recipe.caption_policy,
        prompts=recipe.prompts,
        validation=validation_of(recipe),
        max_skipped_steps=recipe.max_skipped_steps,
        seed=recipe.seed,
        console=console,
        training=recipe.training,
    )
