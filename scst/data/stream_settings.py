"""What a stream of rows cannot be trained with. Imports no library: recipes are checked with it, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scst.errors import RecipeError


def is_tar(dataset: str) -> bool:
    """Whether a name is a tar archive or a folder of them, which are always read as a stream."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        others = ("captions.csv", "*.parquet", "data/*.parquet", "dataset_dict.json", "state.json")
        return any(path.glob("*.tar")) and not any(next(path.glob(name), None) for name in others)
    return path.suffix == ".tar"


def check_streamed(training: Mapping[str, Any], **settings: Any) -> None:
    """Refuse settings that a stream cannot have.

    Args:
        training: names of ``transformers.TrainingArguments``.
        settings: keys of the recipe; those of :data:`IMPOSSIBLE` are looked at.

    Raises:
        RecipeError: naming the setting, and what to use.
    """
    if int(training.get("max_steps") or -1) < 1:
        raise RecipeError("max_steps: missing; a stream does not say how many rows it has, so give max_steps")
    if int(training.get("dataloader_num_workers") or 0) > 1:
        workers = training["dataloader_num_workers"]
        raise RecipeError(
            f"dataloader_num_workers: a stream is read by one worker, got {workers}: use 0 or 1"
        )
    if settings.get("caption_policy") in ("all", "consensus"):
        raise RecipeError(
            f"caption_policy: {settings['caption_policy']} needs all captions before the first step, which a "
            "stream does not have: use first, random or longest"
        )
    for name, advice in IMPOSSIBLE.items():
        if settings.get(name) not in (None, False, "off"):
            raise RecipeError(f"{name}: cannot be used with a stream: {advice}")


IMPOSSIBLE = {
    "split_fractions": "it is cut into splits by its files (train-*.tar, val-*.tar) or its column split",
    "max_train_images": "give max_steps",
    "feature_cache": "it does not say which images it has; use off",
    "one_step_off_policy": "a resumed run looks up the images of the step before; use false",
}
"""Key -> what to do instead."""
