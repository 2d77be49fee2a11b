"""Builds the self-critical stage from its recipe."""

from __future__ import annotations

import torch
import transformers
from rich.console import Console

from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import build_rewards
from scst.adapters.loaded import LoadedPolicy
from scst.adapters.saved_adapter import check_adapter_exists
from scst.config.build_validation import validation_of
from scst.config.recipes import SCSTRecipe
from scst.data.load_splits import LoadedData
from scst.errors import RecipeError
from scst.metrics.bootstrap import check_metrics
from scst.metrics.suite import METRICS
from scst.rl.policy_loss import Objective, ScoringSettings
from scst.rl.refine import scst_trainer
from scst.rl.trainer import SCSTTrainer
from scst.rl.unsupported_arguments import refuse_unsupported
from scst.training.training_arguments import training_arguments
from scst.types import Sampling


def check_settings(recipe: SCSTRecipe) -> None:
    """Check a recipe as far as this needs neither data nor model.

    Raises:
        RecipeError: on settings that cannot work together.
    """
    if recipe.adapter is None:
        raise RecipeError("adapter: missing; give the output folder of launch/sft.py (--adapter DIR)")
    if recipe.baseline != "greedy" and recipe.num_samples < 2:
        raise RecipeError(
            f"num_samples: the {recipe.baseline} baseline needs at least 2, got {recipe.num_samples}"
        )
    check_metrics(recipe.watched_metrics or ["cider_d"], columns=("images", "ended_by_eos"))
    aimless = [name for name in recipe.watched_metrics if METRICS[name].direction == 0]
    if aimless:
        raise RecipeError(f"watched_metrics: of {', '.join(aimless)} neither more nor less is better")
    if recipe.feature_cache is True:
        raise RecipeError("feature_cache: expected off or a folder, got true")
    least = {"watch_patience": 1, "scoring_batch_size": 0, "head_chunk": 0, "max_importance_ratio": 1}
    for name, limit in least.items():
        if (value := getattr(recipe, name)) < limit:
            raise RecipeError(f"{name}: expected {limit} or more, got {value}")
    if not recipe.prompt_gradient and check_adapter_exists(recipe.adapter) == "prompt_tuning":
        raise RecipeError(
            "prompt_gradient: all of the gradient of prompt tuning flows through the prompt; use true"
        )
    if recipe.cuda_graphs and not torch.cuda.is_available():
        raise RecipeError("cuda_graphs: there is no CUDA device here; leave it out")
    _check_sampling(recipe)
    validation_of(recipe)
    check_training_arguments(recipe)


def check_training_arguments(recipe: SCSTRecipe) -> None:
    """Refuse training arguments that are wrong, or that this stage does not support.

    Raises:
        RecipeError: naming them.
    """
    cls, settings = transformers.TrainingArguments, recipe.training
    refuse_unsupported(
        training_arguments(cls, recipe.output_dir, settings, seed=recipe.seed, precision=recipe.precision)
    )


def _check_sampling(recipe: SCSTRecipe) -> None:
    try:
        Sampling(
            num_samples=recipe.num_samples,
            temperature=recipe.temperature,
            top_k=recipe.top_k,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
            min_new_tokens=recipe.min_new_tokens,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error


def build_reward(recipe: SCSTRecipe) -> RewardMixture:
    """Build the reward mixture. Its reward functions are not set up with training data yet.

    Raises:
        RecipeError: naming the reward that cannot be built.
    """
    try:
        mixture = RewardMixture(build_rewards(recipe.rewards))
    except RewardError as error:
        raise RecipeError(f"rewards: {error}") from error
    for reward in mixture.rewards:
        scorer = getattr(reward.function, "scorer", None)  # set here only when the recipe names a table
        table = getattr(scorer, "frequencies", None)
        if table is not None and table.split != recipe.train_split:
            raise RecipeError(
                f"rewards: the document frequencies of {reward.name!r} are of split {table.split!r}, but "
                f"the run trains on {recipe.train_split!r}: count it with launch/prepare.py, or give none"
            )
    return mixture


def build_trainer(
    recipe: SCSTRecipe, policy: LoadedPolicy, data: LoadedData, mixture: RewardMixture, console: Console
) -> SCSTTrainer:
    """Build the trainer that a recipe describes.

    Args:
        recipe: the recipe.
        policy: model with the adapter of the supervised stage.
        data: the splits of the recipe.
        mixture: as :func:`build_reward` returns it, set up.
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
