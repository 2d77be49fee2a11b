"""Checks of a whole recipe that need neither torch nor data: the same in ``--dry_run`` and before a run.

Types and ranges of single keys are checked when the recipe is read (:mod:`scst.config.reader`). Here is what
keys need of each other, and whether the model, adapter and files exist that they name.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scst.adapters.mergeable import check_mergeable
from scst.adapters.saved_adapter import adapter_settings, check_adapter_exists
from scst.config.devices import check_devices
from scst.config.keys import DataKeys, Recipe, RunKeys
from scst.config.recipes import (
    CaptionRecipe,
    EvaluateRecipe,
    ExplainRecipe,
    MergeRecipe,
    PrepareRecipe,
    SCSTRecipe,
    SFTRecipe,
    check_required,
)
from scst.data.fractions import parse_fractions
from scst.data.stream_settings import IMPOSSIBLE, check_streamed, is_tar
from scst.errors import RecipeError, shown
from scst.evaluation.decoding import get_decoding
from scst.metrics.bootstrap import check_metrics
from scst.metrics.suite import METRICS
from scst.models.base_checkpoint import check_model_exists
from scst.rl.unsupported_arguments import refuse_unsupported
from scst.training.arguments.argument_checks import (
    check_best_metric,
    check_early_stopping,
    evaluation_metrics,
)

ModelRecipe = SFTRecipe | SCSTRecipe | EvaluateRecipe | CaptionRecipe | ExplainRecipe | MergeRecipe
BASE = "base"
"""What ``compare_adapters`` calls the model without adapter."""
_FILES = ("frequencies", "training_captions", "compare_with", "categories", "images")
"""Keys that name a file or folder which must exist."""


def check_recipe(recipe: Recipe, *, has_adapter: bool = True) -> None:
    """Refuse what cannot work, before anything is imported, read or written.

    Args:
        recipe: of any command.
        has_adapter: False where the adapter is made by a run before this one.

    Raises:
        RecipeError: naming the key.
    """
    check_required(recipe)
    if isinstance(recipe, EvaluateRecipe) and recipe.compare:
        return
    _check_files(recipe)
    _check_lengths(recipe)
    if isinstance(recipe, DataKeys | PrepareRecipe) and recipe.split_fractions is not None:
        parse_fractions(recipe.split_fractions)
    if isinstance(recipe, SFTRecipe | SCSTRecipe):
        _check_training(recipe)
    if isinstance(recipe, SFTRecipe):
        _check_patterns(recipe)
    if isinstance(recipe, SCSTRecipe):
        _check_rl(recipe, has_adapter=has_adapter)
    if isinstance(recipe, EvaluateRecipe | CaptionRecipe | ExplainRecipe):
        get_decoding(recipe.decoding)
    if isinstance(recipe, ExplainRecipe):
        for adapter in recipe.compare_adapters:
            if adapter != BASE:
                check_adapter_exists(adapter)
    if isinstance(recipe, MergeRecipe):
        if recipe.adapter is None:
            raise RecipeError(
                "adapter: missing; give the output folder of scst sft or scst rl (--adapter DIR)"
            )
        check_mergeable(recipe.adapter)
    if isinstance(recipe, ModelRecipe) and (has_adapter or recipe.model_name_or_path):
        base_model_of(recipe, has_adapter=has_adapter)


def base_model_of(recipe: ModelRecipe, *, has_adapter: bool = True) -> str:
    """Check adapter and base model of a recipe; returns the base model's name.

    Args:
        recipe: of a command that loads a model.
        has_adapter: as of :func:`check_recipe`.

    Raises:
        RecipeError: on a model or adapter that cannot be used.
    """
    name = recipe.model_name_or_path
    if recipe.adapter is not None and has_adapter:
        check_adapter_exists(recipe.adapter)
        name = name or adapter_settings(Path(recipe.adapter)).get("base_model_name_or_path")
    if not name:
        raise RecipeError("model_name_or_path: missing; give a checkpoint, or an adapter that names its own")
    check_model_exists(name)
    return name


def _check_files(recipe: Recipe) -> None:
    """Refuse input files that are not there, and output folders that cannot be made."""
    for name in _FILES:
        value = getattr(recipe, name, None)
        if value is not None and not Path(value).exists():
            raise RecipeError(f"{name}: there is no file or folder {shown(value)}")
    resume = getattr(recipe, "resume", False)
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise RecipeError(f"resume: there is no folder {shown(resume)}; give a checkpoint folder, or true")
    if isinstance(recipe, RunKeys | PrepareRecipe | MergeRecipe):
        _check_output(recipe.output_dir)


def _check_output(output_dir: str) -> None:
    """Refuse an output folder that cannot be made or written; nothing is made here."""
    if not output_dir.strip():
        raise RecipeError("output_dir: expected the name of a folder, got an empty text")
    folder = Path(output_dir)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RecipeError(
            f"output_dir: {shown(output_dir)} cannot be written: {str(existing)!r} is no folder"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(
            f"output_dir: {shown(output_dir)} cannot be written: no permission for {str(existing)!r}"
        )


def _check_lengths(recipe: Recipe) -> None:
    least, most = getattr(recipe, "min_new_tokens", 0), getattr(recipe, "max_new_tokens", None)
    if isinstance(most, int) and least > most:
        raise RecipeError(f"min_new_tokens: expected at most max_new_tokens ({most}), got {least}")


def _check_stream(recipe: SFTRecipe | SCSTRecipe) -> None:
    """Refuse what training on a stream of rows cannot have."""
    if not (recipe.streaming or is_tar(recipe.dataset or "")):
        return
    names = ("caption_policy", *IMPOSSIBLE)
    check_streamed(recipe.training, **{name: getattr(recipe, name, None) for name in names})
    for reward in recipe.rewards if isinstance(recipe, SCSTRecipe) else []:
        entry: dict[str, Any] = reward if isinstance(reward, dict) else {"name": reward}
        if entry.get("name") == "cider_d" and not (entry.get("kwargs") or {}).get("frequencies"):
            raise RecipeError(
                "rewards: cider_d counts the references of all training images, which a stream does not have "
                "before the first step: give kwargs: {frequencies: FILE} (scst prepare document-frequencies)"
            )


def _check_training(recipe: SFTRecipe | SCSTRecipe) -> None:
    _check_stream(recipe)
    check_devices(recipe)
    is_rl = isinstance(recipe, SCSTRecipe)
    metrics = ["cider_d", *(recipe.watched_metrics if isinstance(recipe, SCSTRecipe) else [])]
    check_best_metric(recipe.training, evaluation_metrics(metrics, has_loss=not is_rl, has_reward=is_rl))
    check_early_stopping(recipe.early_stopping_patience, recipe.training)


def _check_patterns(recipe: SFTRecipe) -> None:
    """Refuse regular expressions over module names that are none."""
    for name, pattern in (
        ("lora_targets", recipe.lora_targets),
        *(("lora_rank_pattern", pattern) for pattern in recipe.lora_rank_pattern),
    ):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise RecipeError(f"{name}: {shown(pattern)} is no regular expression: {error}") from error


def _check_rl(recipe: SCSTRecipe, *, has_adapter: bool) -> None:
    """Refuse settings of the self-critical stage that cannot work together."""
    if recipe.adapter is None:
        raise RecipeError("adapter: missing; give the output folder of scst sft (--adapter DIR)")
    if recipe.baseline != "greedy" and recipe.num_samples < 2:
        raise RecipeError(
            f"num_samples: the {recipe.baseline} baseline needs at least 2, got {recipe.num_samples}"
        )
    _check_watched(recipe.watched_metrics)
    if recipe.feature_cache is True:
        raise RecipeError("feature_cache: expected off or a folder, got true")
    if not recipe.prompt_gradient and has_adapter and check_adapter_exists(recipe.adapter) == "prompt_tuning":
        raise RecipeError(
            "prompt_gradient: all of the gradient of prompt tuning flows through the prompt; use true"
        )
    if recipe.cuda_graphs and not importlib.import_module("torch").cuda.is_available():
        raise RecipeError("cuda_graphs: there is no CUDA device here; leave it out")
    refuse_unsupported(recipe.training)


def _check_watched(names: Sequence[str]) -> None:
    try:
        check_metrics(names or ["cider_d"], columns=("images", "ended_by_eos"))
    except RecipeError as error:
        raise RecipeError(f"watched_{error}") from error
    aimless = [name for name in names if METRICS[name].direction == 0]
    if aimless:
        raise RecipeError(f"watched_metrics: of {', '.join(aimless)} neither more nor less is better")
