"""Merge an adapter into the weights of its base model: a checkpoint that any program for its family loads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from scst.adapters.loading import load_adapter
from scst.adapters.mergeable import check_mergeable
from scst.adapters.prompt_tuning import virtual_tokens_of
from scst.data.files import give_umask
from scst.models.families.table import family_of
from scst.models.pretrained import load_model
from scst.models.processors import load_processor

_STAGING = ".merging-"


def merged_model(base: str, adapter: str, *, precision: str) -> tuple[Any, list[str]]:
    """The base model with the adapter in its weights, and the virtual tokens that prompts must begin with.

    The base model is loaded unquantised, because quantised weights would be rounded once more. LoRA is added
    to the weights; the rows of virtual tokens replace those of reserved tokens, in the language-model head
    too where it is tied to the embeddings (such tokens are forbidden in captions).

    Args:
        base: name or folder of the base model.
        adapter: folder of the adapter.
        precision: of the result: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
    """
    check_mergeable(adapter)
    model = load_model(base, quantization="none", precision=precision)
    adapted = load_adapter(model, adapter, trainable=False)
    tokens = virtual_tokens_of(adapted)
    return adapted.merge_and_unload(safe_merge=True), tokens


def write_merged(
    base: str, adapter: str, output_dir: str | Path, *, precision: str, image_tokens: int = 0
) -> list[str]:
    """Merge and write weights, configuration and processor; returns the virtual tokens of the prompt."""
    check_mergeable(adapter)
    processor = load_processor(base, image_tokens=image_tokens)
    model, tokens = merged_model(base, adapter, precision=precision)
    family_of(model).take_image_sizes(model, processor)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for left in output_dir.glob(f"{_STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    # A half-written checkpoint must never have the name of a complete one: write it elsewhere first.
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=_STAGING) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        give_umask(Path(staging))
        for file in sorted(Path(staging).iterdir()):
            os.replace(file, output_dir / file.name)
    return tokens
