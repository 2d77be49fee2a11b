"""Load a checkpoint's processor, without the part for videos, which needs torchvision."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from scst.errors import RecipeError, shown
from scst.models.base_checkpoint import check_model_exists, resolve_model_path
from scst.models.families.table import family


@cache
def without_video(processor_class: Any) -> Any:
    """A processor class of transformers that has no video processor; itself when it never has one."""
    if "video_processor" not in inspect.signature(processor_class.__init__).parameters:
        return processor_class

    class PicturesOnly(processor_class):
        """Saved and loaded under the name of the class it derives from."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor_class.get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            return [*super()._get_arguments_from_pretrained(*args, **kwargs), None]

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = processor_class.__name__
    return PicturesOnly


def load_processor(name_or_path: str, *, image_tokens: int = 0) -> Any:
    """The checkpoint's processor; captions and prompts are padded by this project, never truncated by it.

    Args:
        name_or_path: local folder, hub id or ``embedded:scenes-paligemma``.
        image_tokens: most tokens of an image; 0: as the checkpoint has it.

    Raises:
        RecipeError: when there is none, it cannot be loaded, or images cannot have so few tokens.
    """
    path = resolve_model_path(name_or_path)
    model_type = check_model_exists(name_or_path)
    processor_class = without_video(getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type]))
    try:
        processor = processor_class.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the library raises on files that it cannot use
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RecipeError(
            f"model_name_or_path: the processor of {shown(name_or_path)} cannot be loaded: {reason}"
        ) from error
    if image_tokens:
        family(model_type).limit_image_tokens(processor, image_tokens)
    return processor
