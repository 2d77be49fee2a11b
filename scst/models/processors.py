"""Load a checkpoint's processor, without the part for videos, which needs torchvision."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from scst.models.base_checkpoint import check_model_exists, resolve_model_path


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


def load_processor(name_or_path: str) -> Any:
    """The checkpoint's processor; captions and prompts are padded by this project, never truncated by it."""
    path = resolve_model_path(name_or_path)
    model_type = check_model_exists(name_or_path)
    processor_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    return without_video(processor_class).from_pretrained(path, trust_remote_code=False)
