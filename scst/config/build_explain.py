"""From an explain recipe to explanations and their files."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from scst.errors import DataError, RecipeError

if TYPE_CHECKING:
    from PIL import Image

    from scst.explain.explain import Explanation, Settings

BASE = "base"


def one_picture(positional: Sequence[str]) -> Path:
    """The picture that the command line names.

    Raises:
        DataError: when it names none, more than one, or no file.
    """
    if len(positional) != 1:
        raise DataError(f"expected one picture to explain, got {len(positional)}: {' '.join(positional)}")
    path = Path(positional[0])
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file: name one picture")
    return path


def explanation_settings(recipe: Any) -> Settings:
    """The effort of an explain recipe.

    Raises:
        RecipeError: on a value that cannot be, or when captum or scikit-image is missing.
    """
    missing = [name for name in ("captum", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"explanations need {' and '.join(missing)}: pip install 'scst[explain]'")
    from scst.evaluation.decoding import get_decoding
    from scst.explain.explain import Settings

    get_decoding(recipe.decoding)
    names = {"permutations": "shap_permutations", "batch_size": "explain_batch_size"}
    fields = [field.name for field in dataclasses.fields(Settings)]
    values = {name: getattr(recipe, names.get(name, name)) for name in fields}
    for name, key in names.items():
        if values[name] < 1:
            raise RecipeError(f"{key}: must be at least 1, got {values[name]}")
    return Settings(**values)


def models_to_explain(recipe: Any) -> dict[str, Any]:
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
    label: str, recipe: Any, image: Image.Image, settings: Settings, console: Console
) -> Explanation:
    """Load one model, let it caption the picture unless the recipe gives a caption, and explain that."""
    from scst.config import build
    from scst.evaluation.captioning import caption_images
    from scst.explain.explain import explain, pictures_to_see

    policy = build.build_policy(recipe, build.check_inputs(recipe), trainable=False)
    model, processor = policy.model, policy.encoder
    caption = recipe.caption
    if caption is None:
        limits = {"max_new_tokens": recipe.max_new_tokens, "min_new_tokens": recipe.min_new_tokens}
        found = caption_images(
            model, processor, [image], recipe.prompt, recipe.decoding, seed=recipe.seed, **limits
        )
        caption = found[0].text
    console.print(f"[bold]{label}[/bold]: {caption}", highlight=False)
    words = 2 if recipe.word is not None else len(caption.split()) + 1
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"explaining {label}", total=pictures_to_see(settings, words))
        return explain(
            model,
            processor,
            image,
            caption,
            prompt=recipe.prompt,
            max_new_tokens=recipe.max_new_tokens,
            settings=settings,
            word=recipe.word,
            label=label,
            progress=lambda pictures: progress.advance(task, pictures),
        )


def write_outputs(
    recipe: Any, path: Path, image: Image.Image, explanations: Sequence[Explanation], console: Console
) -> None:
    """Overlays, page and numbers; the numbers last, so that where they are everything is."""
    from scst.config.reader import resolved
    from scst.data.files import write_json, write_text
    from scst.explain.explain import METHODS
    from scst.explain.explanation_files import explanation_record, write_overlays
    from scst.explain.explanation_page import explanation_page
    from scst.training.run_record import versions

    folder = Path(recipe.output_dir)
    (folder / "explanation.json").unlink(missing_ok=True)
    try:
        for explanation in explanations:
            write_overlays(folder / explanation.label, image, explanation)
        base = recipe.model_name_or_path or "the adapter's base model"
        subtitle = f"{base} · prompt “{recipe.prompt}” · hidden parts: {recipe.occlusion}"
        page = explanation_page(f"What the caption of {path.name} rests on", subtitle, image, explanations)
        write_text(folder / "explanation.html", page)
        record = {
            "image": str(path),
            "recipe": resolved(recipe),
            "versions": versions(),
            "explanations": [explanation_record(each) for each in explanations],
        }
        write_json(folder / "explanation.json", record)
    except OSError as error:
        raise RecipeError(f"output_dir: {recipe.output_dir!r} cannot be written: {error}") from error
    for explanation in explanations:
        numbers = ", ".join(
            f"{METHODS[name]} {curve.faithfulness:+.3f}" for name, curve in explanation.curves.items()
        )
        console.print(f"{explanation.label}: faithfulness {numbers}", highlight=False)
    console.print(f"[bold]done[/bold]: {folder / 'explanation.html'}", highlight=False)
