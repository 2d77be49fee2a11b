"""Builders of the supervised stage: training arguments and trainer."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from scst.config import build
from scst.data.collate import SFTCollator
from scst.data.loading import LoadedData
from scst.data.supervision import CaptionChoice
from scst.rl.progress import RichProgress
from scst.sft.trainer import SFT_ARGUMENTS, CaptionSFTTrainer, SFTConfig


def training_arguments(recipe: Any) -> SFTConfig:
    """The training arguments of a recipe."""
    return build.build_training_arguments(recipe, SFTConfig, **SFT_ARGUMENTS)


def build_trainer(
    recipe: Any, model: Any, processor: Any, data: LoadedData, console: Console
) -> CaptionSFTTrainer:
    """The trainer of the supervised stage, with its progress."""
    args = training_arguments(recipe)
    choice = CaptionChoice(recipe.caption_policy, recipe.seed)
    return CaptionSFTTrainer(
        model,
        args,
        train_dataset=choice.expand(data.splits[recipe.train_split]),
        data_collator=SFTCollator(processor, recipe.prompt, choice, recipe.max_new_tokens, recipe.prompts),
        processor=processor,
        validation=build.build_validation(recipe, data, processor, args),
        callbacks=[RichProgress(console, "SFT"), *build.stopping_callbacks(recipe)],
    )
