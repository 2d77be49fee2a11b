"""A model with its adapter and everything that captioning with it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from peft import PeftModel

from scst.adapters.kinds import Adapter
from scst.adapters.loading import load_adapter
from scst.adapters.new_adapter import add_adapter
from scst.adapters.prompt_tuning import encoder_for
from scst.data.files import give_umask
from scst.errors import RecipeError
from scst.models.families.table import family_of
from scst.models.pretrained import load_model
from scst.models.processors import load_processor
from scst.models.prompts import PromptEncoder


@dataclass
class LoadedPolicy:
    """A captioner that can be trained.

    Attributes:
        model: the model, with an adapter where it has one.
        encoder: makes its inputs.
        base: name or folder of the base model.
        prompt: the instruction beside the image.
        max_new_tokens: length limit of captions in tokens, end of sequence included.
        min_new_tokens: captions cannot end before this many tokens.
        precision: of computation: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        quantization: of the frozen decoder: ``nf4``, ``8bit`` or ``none``.
        image_tokens: most tokens of an image; 0: as the checkpoint has it.
    """

    model: torch.nn.Module
    encoder: PromptEncoder
    base: str
    prompt: str = "caption en"
    max_new_tokens: int = 32
    min_new_tokens: int = 1
    precision: str = "auto"
    quantization: str = "nf4"
    image_tokens: int = 0

    @classmethod
    def load(
        cls,
        base: str,
        adapter: str | Path | Adapter | None = None,
        *,
        quantization: str = "nf4",
        precision: str = "auto",
        attn_implementation: str = "auto",
        image_tokens: int = 0,
        prompt: str = "caption en",
        max_new_tokens: int = 32,
        min_new_tokens: int = 1,
        trainable: bool = True,
        seed: int = 42,
    ) -> Self:
        """Load a base model and give it an adapter.

        Args:
            base: name or folder of the base model, or ``embedded:scenes-paligemma``.
            adapter: folder of a saved adapter, settings of a new one (:mod:`scst.adapters.kinds`), or None.
            quantization, precision, image_tokens, prompt, max_new_tokens, min_new_tokens: as of the
                class.
            attn_implementation: ``auto``, ``sdpa`` or ``eager``.
            trainable: whether a saved adapter can be trained further.
            seed: of a new adapter's weights.

        Raises:
            RecipeError: when the model or the adapter cannot be loaded, or do not fit each other.
        """
        processor = load_processor(base, image_tokens=image_tokens)
        model = load_model(
            base, quantization=quantization, precision=precision, attn_implementation=attn_implementation
        )
        family_of(model).take_image_sizes(model, processor)
        if isinstance(adapter, str | Path):
            model = load_adapter(model, adapter, trainable=trainable)
        elif adapter is not None:
            model = add_adapter(model, processor, adapter, prompt=prompt, seed=seed)
        return cls(
            model,
            encoder_for(model, processor),
            base,
            prompt,
            max_new_tokens,
            min_new_tokens,
            precision,
            quantization,
            image_tokens,
        )

    def save(self, folder: str | Path) -> None:
        """Save the adapter and the processor."""
        if not isinstance(self.model, PeftModel):
            raise RecipeError("there is no adapter to save: load the policy with one, e.g. LoRA(rank=16)")
        self.model.save_pretrained(str(folder))
        self.encoder.save_pretrained(str(folder))
        give_umask(Path(folder))
