"""Prompt format of the PaliGemma family: from images, prompts and captions to ids, types and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from scst.errors import RecipeError
from scst.types import IGNORED_LABEL, PromptBatch

IMAGE_TOKEN = "<image>"
PLACEHOLDERS = re.compile(r"<(loc|seg|unused)\d+>")
"""Tokens for locations (``<loc0000>``), segments (``<seg000>``) and nothing (``<unused0>``): never words."""


class PromptEncoder:
    """Turns images, instructions and captions into the model's inputs, and completions into text.

    Args:
        processor: a PaliGemma processor.
        virtual_tokens: text put between the image and every instruction: the reserved tokens that prompt
            tuning trains (:func:`scst.adapters.prompt_tuning.encoder_for`).
    """

    def __init__(self, processor: Any, virtual_tokens: str = ""):
        self.processor = processor
        self.virtual_tokens = virtual_tokens
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor

    @classmethod
    def of(cls, processor: Any) -> PromptEncoder:
        """``processor`` itself when it is an encoder, else an encoder of it without virtual tokens."""
        return processor if isinstance(processor, cls) else cls(processor)

    @property
    def image_token_id(self) -> int:
        """Id of the image placeholder."""
        return self.processor.image_token_id

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save the processor; virtual tokens are saved with the adapter."""
        return self.processor.save_pretrained(*args, **kwargs)

    def encode_prompts(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Inputs of ``model.generate``: left-padded prompts whose tokens all have type 0 (bidirectional).

        Args:
            images: B pictures of any mode and size.
            prompts: B instructions without the image token, e.g. ``caption en``.

        Returns:
            ``input_ids``, ``attention_mask``, ``token_type_ids`` (B, P) and ``pixel_values`` (B, 3, H, W).
        """
        batch = self.processor(
            text=[IMAGE_TOKEN + self.virtual_tokens + prompt for prompt in prompts],
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding="longest",
            padding_side="left",
        )
        batch.pop("labels", None)  # the processor always makes them; `generate` does not want them
        # Type 0 everywhere. With the types left out, one attention kernel makes the prompt causal and another
        # lets it see later tokens.
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return dict(batch)

    def prompt_batch(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> PromptBatch:
        """The record that rollouts start from; arguments as in :meth:`encode_prompts`."""
        inputs = self.encode_prompts(images, prompts)
        return PromptBatch(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["pixel_values"])

    def encode_captions(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        captions: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> dict[str, torch.Tensor]:
        """Inputs of supervised training: prompt (type 0, ignored), caption and ``<eos>`` (type 1, trained).

        Captions are cut to ``max_new_tokens`` tokens *before* encoding; a cut caption keeps no ``<eos>``,
        because the policy would be taught to end where its teacher went on.

        Returns:
            ``input_ids``, ``attention_mask``, ``position_ids``, ``token_type_ids``, ``labels`` (B, P + T) and
            ``pixel_values``; ``labels`` is -100 on prompt and padding.
        """
        prompt_inputs = self.encode_prompts(images, prompts)
        caption_ids = [self.caption_token_ids(caption, max_new_tokens) for caption in captions]
        length = max(map(len, caption_ids))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in caption_ids])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in caption_ids])
        attention_mask = torch.cat([prompt_inputs["attention_mask"], mask], 1)
        ignored = torch.full_like(prompt_inputs["input_ids"], IGNORED_LABEL)
        return {
            "input_ids": torch.cat([prompt_inputs["input_ids"], ids], 1),
            "attention_mask": attention_mask,
            # The positions of sampling. Left to itself the model counts padding too, which shifts captions
            # against a prefix of fixed positions (prefix tuning).
            "position_ids": attention_mask.cumsum(1).clamp(min=1),
            "token_type_ids": torch.cat([prompt_inputs["token_type_ids"], torch.ones_like(ids)], 1),
            "labels": torch.cat([ignored, ids.masked_fill(mask == 0, IGNORED_LABEL)], 1),
            "pixel_values": prompt_inputs["pixel_values"],
        }

    def caption_token_ids(self, caption: str, max_new_tokens: int) -> list[int]:
        """Token ids of a human caption with its ``<eos>``, cut to ``max_new_tokens``.

        Every token returned can be sampled: blanks are collapsed as in decoded captions, and control tokens
        that the caption spells out (``<image>``, ``<eos>``) are left out.
        """
        ids = self.tokenizer(" ".join(caption.split()), add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        words = [i for i in ids if i != eos and i not in self._control_ids]
        return [*words, eos][:max_new_tokens]

    def decode_captions(self, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Text of completions ``ids`` (N, T) where ``mask`` (N, T) is True, blanks collapsed."""
        rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(control_token_ids(self.processor))


def control_token_ids(processor: Any) -> set[int]:
    """Ids of tokens that are no text: special ones but ``<eos>``, image, location, segment, unused ones.

    Whether a token stands in ``added_tokens_decoder`` says nothing: Gemma's tokenizer lists runs of spaces,
    newlines and HTML tags there, which human captions contain.
    """
    tokenizer = processor.tokenizer
    control = set(tokenizer.all_special_ids) | {processor.image_token_id}
    control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control |= {i for token, i in tokenizer.get_vocab().items() if PLACEHOLDERS.fullmatch(token)}
    control.discard(tokenizer.eos_token_id)
    return control


def forbidden_token_ids(processor: Any, vocab_size: int) -> list[int]:
    """Tokens that must never stand in a caption, in sampling, scoring and decoding alike.

    These are :func:`control_token_ids` and the ids below ``vocab_size`` that the tokenizer does not know. A
    sampled ``<image>`` would make the next forward pass fail; the others have no text.
    """
    unknown = set(range(vocab_size)) - set(processor.tokenizer.get_vocab().values())
    return sorted(i for i in control_token_ids(processor) | unknown if i < vocab_size)


def forbidden_token_mask(processor: Any, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(V,) bool, True on the tokens of :func:`forbidden_token_ids`."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[forbidden_token_ids(processor, vocab_size)] = True
    return mask


def first_tokens(processor: Any, vocab_size: int, count: int, *, text: str | None, seed: int) -> torch.Tensor:
    """(count,) tokens that virtual ones begin as: those of a text, repeated, or random words when it is None.

    Raises:
        RecipeError: when the text has no tokens.
    """
    if text is not None:
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise RecipeError(f"prompt_init_text: {text!r} has no tokens")
        return torch.tensor((ids * count)[:count])
    words = (~forbidden_token_mask(processor, vocab_size)).nonzero().flatten()
    words = words[words != processor.tokenizer.eos_token_id]
    chosen = torch.randint(len(words), (count,), generator=torch.Generator().manual_seed(seed))
    return words[chosen]
