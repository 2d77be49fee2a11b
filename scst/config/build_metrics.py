"""Builds the settings of metrics from the metric keys of a recipe, for all commands that score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from scst.config.keys import MetricKeys
from scst.config.recipes import EvaluateRecipe, required_dataset
from scst.data.visible import json_text
from scst.errors import RecipeError
from scst.evaluation.caption_files import read_captions
from scst.evaluation.score_files import compare_files, differences_table
from scst.metrics.bootstrap import check_metrics
from scst.metrics.paired import comparison_json
from scst.metrics.suite import METRICS, NOVELTY, MetricSettings


def check_settings(recipe: EvaluateRecipe) -> None:
    """Check the metrics of an evaluation as far as this needs no dataset.

    Raises:
        RecipeError: on an unknown metric, or one whose requirements are not met.
    """
    settings = metric_settings(recipe)
    given = settings.training_captions is not None
    names = [name for name in recipe.metrics if given or name not in NOVELTY]
    if names or not recipe.metrics:
        check_metrics(names, settings, columns=("images", "ended_by_eos"))


def checked_settings(recipe: EvaluateRecipe) -> MetricSettings:
    """Build the metric settings of an evaluation, and check them.

    Raises:
        RecipeError: on an unknown metric, or one whose requirements are not met.
    """
    settings = metric_settings(recipe)
    if settings.training_captions is None and set(NOVELTY) & set(recipe.metrics):
        settings = replace(settings, training_captions=_training_captions(recipe))
    check_metrics(recipe.metrics, settings, columns=("images", "ended_by_eos"))
    return settings


def _training_captions(recipe: EvaluateRecipe) -> list[str]:
    """All captions of the training split."""
    from scst.data.columns import values_of
    from scst.data.load_splits import load_splits

    train = load_splits(
        required_dataset(recipe.dataset),
        [recipe.train_split],
        fractions=recipe.split_fractions,
        split_seed=recipe.split_seed,
        resplit=recipe.resplit,
        on_bad_example=recipe.on_bad_example,
    ).splits[recipe.train_split]
    return [caption for group in values_of(train["references"]) for caption in group]


def metric_settings(recipe: MetricKeys) -> MetricSettings:
    """Build the models and tables that the metric keys of a recipe name.

    Raises:
        DataError: when the file of training captions cannot be used.
    """
    captions = read_captions(recipe.training_captions) if recipe.training_captions else None
    return MetricSettings(
        frequencies=recipe.frequencies,
        clip_model=recipe.clip_model,
        sentence_model=recipe.sentence_model,
        bertscore_model=recipe.bertscore_model,
        bertscore_layers=recipe.bertscore_layers,
        training_captions=captions,
    )


def metric_list() -> str:
    """Every metric, a line each: name, title, and what it is or needs."""
    return "\n".join(f"{name:20} {metric.title:18} {metric.help}" for name, metric in METRICS.items())


def print_comparison(recipe: EvaluateRecipe, files: Sequence[str]) -> None:
    """Compare two evaluations, paired by image: a table to standard error, JSON to standard output.

    Raises:
        RecipeError: unless ``files`` names exactly two.
        DataError: when the two are not about the same images.
    """
    if len(files) != 2:
        raise RecipeError(f"compare: expected two output folders or prediction files, got {list(files)}")
    first, second = files
    differences = compare_files(
        first,
        second,
        recipe.metrics,
        settings=metric_settings(recipe),
        bootstrap_samples=recipe.bootstrap_samples,
        seed=recipe.seed,
    )
    Console(stderr=True).print(differences_table(differences, first, second))
    print(json_text(comparison_json(differences), indent=2))
