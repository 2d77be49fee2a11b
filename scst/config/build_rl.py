"""Builds the self-critical stage from its recipe."""

from __future__ import annotations

import transformers
from rich.console import Console

from rewards.mixture import RewardMixture
from scst.adapters.loaded import LoadedPolicy
from scst.config.build_validation import validation_of
from scst.config.recipes import SCSTRecipe
from scst.data.load_splits import LoadedData
from scst.rl.policy_loss import Objective, ScoringSettings
from scst.rl.refine import scst_trainer
from scst.rl.trainer import SCSTTrainer
from scst.training.arguments.training_arguments import training_arguments


def check_training_arguments(recipe: SCSTRecipe) -> None:
    """Refuse training arguments that the library refuses on this machine.

    Raises:
        RecipeError: naming them.
    """
    cls, settings = transformers.TrainingArguments, recipe.training
    training_arguments(cls, recipe.output_dir, settings, seed=recipe.seed, precision=recipe.precision)


def build_trainer(
    mixture: RewardMixture, recipe: SCSTRecipe, policy: LoadedPolicy, data: LoadedData, console: Console
) -> SCSTTrainer:
    """Build the trainer that a recipe describes.

    Args:
        mixture: as :func:`build_reward` returns it, set up.
        recipe: the recipe.
        policy: model with the adapter of the supervised stage.
        data: the splits of the recipe.
        console: where progress is drawn.
    """
    return scst_trainer(
        policy,
        data,
        recipe.output_dir,
        rewards=mixture,
        train_split=recipe.train_split,
        num_samples=recipe.num_samples,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
        objective=Objective(
            baseline=recipe.baseline,
            kl_weight=recipe.kl_weight,
            entropy_weight=recipe.entropy_weight,
            cross_entropy_weight=recipe.cross_entropy_weight,
            max_importance_ratio=recipe.max_importance_ratio,
        ),
        scoring=ScoringSettings(
            layout=recipe.scoring,
            prompt_gradient=recipe.prompt_gradient,
            merge_captions=recipe.merge_captions,
            skip_zero_advantages=recipe.skip_zero_advantages,
            head_chunk=recipe.head_chunk,
            batch_size=recipe.scoring_batch_size,
        ),
        prompts=recipe.prompts,
        caption_policy=recipe.caption_policy,
        validation=validation_of(recipe),
        watched_metrics=recipe.watched_metrics,
        watch_patience=recipe.watch_patience,
        watch_action=recipe.watch_action,
        feature_cache=None if recipe.feature_cache in (False, "off") else str(recipe.feature_cache),
        one_step_off_policy=recipe.one_step_off_policy,
        cuda_graphs=recipe.cuda_graphs,
        streams_weights=recipe.rollout_weights == "streamed",
        table_steps=recipe.table_steps,
        max_skipped_steps=recipe.max_skipped_steps,
        seed=recipe.seed,
        console=console,
        training=recipe.training,
    )
