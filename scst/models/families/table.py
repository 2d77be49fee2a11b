"""All families, and which one a checkpoint or a processor is of. Reading the table imports no torch."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from scst.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from scst.models.families.family import Family

FAMILIES = {
    "paligemma": "paligemma.PaliGemma",
    "llava": "llava.Llava",
    "llava_onevision": "llava.LlavaOnevision",
    "smolvlm": "smolvlm.SmolVLM",
    "idefics3": "smolvlm.SmolVLM",
    "qwen2_vl": "qwen_vl.Qwen2VL",
    "qwen2_5_vl": "qwen_vl.Qwen2VL",
    "qwen3_vl": "qwen_vl.Qwen3VL",
    "gemma3": "gemma3.Gemma3",
    "internvl": "internvl.InternVL",
}
"""``model_type`` of a checkpoint's ``config.json`` -> module and class of its family in this folder."""

REFUSED = {
    "qwen3_5": "its linear-attention layers carry one state per caption, so captions cannot share a prompt",
    "gemma4": "its last layers reuse keys and values of earlier ones, which is not implemented",
    "internvl_chat": "its code comes with the checkpoint; take the one whose name ends in -hf",
}
"""``model_type`` -> why it cannot be trained here."""


@cache
def family(model_type: str) -> Family:
    """The family of a ``model_type`` of :data:`FAMILIES`."""
    module, _, name = FAMILIES[model_type].partition(".")
    return getattr(importlib.import_module(f"scst.models.families.{module}"), name)()


def family_of(model: nn.Module) -> Family:
    """The family of a model without wrappers."""
    config: Any = model.config
    return family(config.model_type)


def family_of_processor(processor: Any) -> Family:
    """The family of a processor, or of the one within a prompt encoder.

    Raises:
        RecipeError: when it is of none.
    """
    name = type(getattr(processor, "processor", processor)).__name__
    known = {name: family(model_type) for model_type in FAMILIES for name in family(model_type).processors}
    if name not in known:
        raise RecipeError(f"a {name} is of no supported family; expected one of {', '.join(known)}")
    return known[name]
