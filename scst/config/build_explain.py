"""Builds explanations and their files from an explain recipe."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scst.config.checks import BASE, base_model_of
from scst.config.recipes import ExplainRecipe
from scst.data.terminal import labelled, plain
from scst.errors import DataError, RecipeError
from scst.training.secrets import without_secrets

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from scst.explain.explanation import Explanation, Settings
    from scst.models.prompts import PromptEncoder


def one_picture(positional: Sequence[str]) -> Path:
    """The path of the picture that the command line names.

    Raises:
        DataError: when it names none, more than one, or no file.
    """
    if len(positional) != 1:
        raise DataError(f"expected one picture to explain, got {len(positional)}: {' '.join(positional)}")
    path = Path(positional[0])
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file: name one picture")
    return path


def check_explain_installed() -> None:
    """Refuse to explain without the packages for it.

    Raises:
        RecipeError: naming those that are missing.
    """
    missing = [name for name in ("captum", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"explanations need {' and '.join(missing)}: pip install 'scst[explain]'")


def explanation_settings(recipe: ExplainRecipe) -> Settings:
    """Build the explanation settings of a recipe.

    Raises:
        RecipeError: on a value out of range, or when captum or scikit-image is not installed.
    """
    check_explain_installed()
    from scst.explain.explanation import Settings

    return Settings(
        methods=recipe.methods,
        num_segments=recipe.num_segments,
        permutations=recipe.shap_permutations,
        ig_steps=recipe.ig_steps,
        curve_steps=recipe.curve_steps,
        occlusion=recipe.occlusion,
        batch_size=recipe.explain_batch_size,
        seed=recipe.seed,
    )


def models_to_explain(recipe: ExplainRecipe) -> dict[str, ExplainRecipe]:
    """Label -> the recipe with the adapter of that model; the recipe's own comes first.

    Raises:
        RecipeError: when a model is named twice, or `base` is asked for and there is none.
    """
    adapters = [recipe.adapter or BASE, *map(str, recipe.compare_adapters)]
    if len(set(adapters)) < len(adapters):
        raise RecipeError(f"compare_adapters: a model is named twice: {', '.join(adapters)}")
    if BASE in adapters and recipe.model_name_or_path is None:
        raise RecipeError("model_name_or_path: missing; the model without adapter cannot be found without it")
    names = [adapter if adapter == BASE else Path(adapter).name for adapter in adapters]
    labels = [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]
    return {
        label: dataclasses.replace(recipe, adapter=None if adapter == BASE else adapter)
        for label, adapter in zip(labels, adapters, strict=True)
    }


def explain_model(
    label: str, recipe: ExplainRecipe, image: Image.Image, settings: Settings, console: Console
) -> Explanation:
    """Load one model and explain its caption of the picture, or the caption that the recipe gives."""
    from scst.config import build
    from scst.explain.explanation import explain_caption, pictures_to_see

    policy = build.build_policy(recipe, base_model_of(recipe), trainable=False)
    model, encoder = policy.model, policy.encoder
    caption = recipe.caption if recipe.caption is not None else _caption(recipe, model, encoder, image)
    console.print(labelled(f"{label}:", "bold", caption))
    targets = 2 if recipe.word is not None else len(caption.split()) + 1
    with build.progress_to_stderr(f"explaining {label}", pictures_to_see(settings, targets)) as advance:
        return explain_caption(
            model,
            encoder,
            image,
            caption,
            prompt=recipe.prompt,
            max_new_tokens=recipe.max_new_tokens,
            settings=settings,
            word=recipe.word,
            label=label,
            progress=advance,
        )


def _caption(
    recipe: ExplainRecipe, model: torch.nn.Module, encoder: PromptEncoder, image: Image.Image
) -> str:
    from scst.evaluation.captioning import caption_images

    (found,) = caption_images(
        model,
        encoder,
        [image],
        recipe.prompt,
        recipe.decoding,
        max_new_tokens=recipe.max_new_tokens,
        min_new_tokens=recipe.min_new_tokens,
        seed=recipe.seed,
    )
    return found.text


def write_outputs(
    recipe: ExplainRecipe,
    path: Path,
    image: Image.Image,
    explanations: Sequence[Explanation],
    console: Console,
) -> None:
    """Write overlays, page and numbers, and print the faithfulness of every map.

    Raises:
        RecipeError: the output folder cannot be written.
    """
    from scst.config.reader import resolved
    from scst.explain.explanation import METHODS
    from scst.explain.explanation_files import PAGE, write_explanations
    from scst.training.run_folder.run_record import versions

    base = recipe.model_name_or_path or "the adapter's base model"
    try:
        write_explanations(
            recipe.output_dir,
            image,
            explanations,
            title=f"What the caption of {path.name} rests on",
            subtitle=f"{base} · prompt “{recipe.prompt}” · hidden parts: {recipe.occlusion}",
            about={"image": str(path), "recipe": without_secrets(resolved(recipe)), "versions": versions()},
        )
    except OSError as error:
        raise RecipeError(f"output_dir: {recipe.output_dir!r} cannot be written: {error}") from error
    for explanation in explanations:
        numbers = ", ".join(
            f"{METHODS[name]} {curve.faithfulness:+.3f}" for name, curve in explanation.curves.items()
        )
        console.print(plain(f"{explanation.label}: faithfulness {numbers}"))
    console.print(labelled("done:", "bold", Path(recipe.output_dir) / PAGE))
