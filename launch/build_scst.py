"""Builders of the self-critical stage: rewards, sampling, objective, trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from launch import build
from rewards.document_frequencies import FILE_NAME, DocumentFrequencies
from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import build_rewards
from scst.callbacks import RichProgress, SampleTable, SaveRewardState
from scst.data.loading import LoadedData
from scst.data.supervision import CaptionChoice
from scst.errors import RecipeError
from scst.records import checkpoint_to_resume
from scst.trainer import Objective, SCSTTrainer
from scst.types import Sampling


def check_settings(recipe: Any) -> None:
    """The checks that need neither data nor model.

    Raises:
        RecipeError: on settings that cannot work together.
    """
    if recipe.adapter is None:
        raise RecipeError("adapter: missing; give the output folder of launch/sft.py (--adapter DIR)")
    if recipe.baseline != "greedy" and recipe.num_samples < 2:
        raise RecipeError(
            f"num_samples: the {recipe.baseline} baseline needs at least 2, got {recipe.num_samples}"
        )
    sampling_of(recipe)


def sampling_of(recipe: Any) -> Sampling:
    """The sampling distribution of a recipe.

    Raises:
        RecipeError: on a value outside its range.
    """
    try:
        return Sampling(
            num_samples=recipe.num_samples,
            temperature=recipe.temperature,
            top_k=recipe.top_k,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
            min_new_tokens=recipe.min_new_tokens,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error


def build_reward(recipe: Any) -> RewardMixture:
    """The reward mixture, not yet set up.

    Raises:
        RecipeError: naming the reward that cannot be built.
    """
    try:
        return RewardMixture(build_rewards(recipe.rewards))
    except RewardError as error:
        raise RecipeError(f"rewards: {error}") from error


def setup_reward(reward: RewardMixture, train: Any, recipe: Any) -> None:
    """Give the rewards the training references, and write their state beside the run.

    A resumed run must find the document frequencies it began with.

    Raises:
        RecipeError: when they differ from those saved with the checkpoint.
    """
    reward.setup(train.select_columns(["references", "image_id"]))
    checkpoint = checkpoint_to_resume(recipe.output_dir, recipe.resume)
    if checkpoint is not None and (Path(checkpoint) / FILE_NAME).is_file():
        _check_frequencies(reward, DocumentFrequencies.load(Path(checkpoint) / FILE_NAME))
    if PartialState().is_main_process:
        reward.save(recipe.output_dir)


def _check_frequencies(reward: RewardMixture, saved: DocumentFrequencies) -> None:
    before = saved.fingerprint
    for weighted in reward.rewards:
        scorer = getattr(weighted.function, "scorer", None)
        if scorer is not None and scorer.frequencies.fingerprint != before:
            raise RecipeError(
                f"resume: the document frequencies of {weighted.name!r} "
                f"({scorer.frequencies.fingerprint[:6]}) are not those of the checkpoint ({before[:6]}): "
                "dataset, split or end-of-sequence policy have changed"
            )


def build_trainer(
    recipe: Any,
    args: Any,
    model: Any,
    processor: Any,
    collator: Any,
    reward: RewardMixture,
    data: LoadedData,
    console: Console,
) -> SCSTTrainer:
    """The trainer of the self-critical stage, with its progress, tables and saved reward state."""
    trainer = SCSTTrainer(
        model,
        args,
        train_dataset=data.splits[recipe.train_split],
        data_collator=collator,
        processor=processor,
        sampling=sampling_of(recipe),
        reward=reward,
        objective=Objective(
            recipe.baseline,
            recipe.kl_weight,
            recipe.entropy_weight,
            recipe.cross_entropy_weight,
            recipe.scoring,
        ),
        validation=build.build_validation(recipe, data, processor, args),
        choice=CaptionChoice(recipe.caption_policy, recipe.seed),
        callbacks=[RichProgress(console, "SCST"), SaveRewardState(reward), *build.stopping_callbacks(recipe)],
    )
    trainer.add_callback(SampleTable(console, recipe.table_steps, lambda: trainer.last_step))
    return trainer
