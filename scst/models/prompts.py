"""From images, instructions and captions to the model's inputs, and from token ids to text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

from scst.errors import RecipeError
from scst.models.families.family import Vision, batched, special_token_ids
from scst.models.families.table import family_of_processor
from scst.types import IGNORED_LABEL, PromptBatch

PLACEHOLDERS = re.compile(r"<(loc|seg|unused)\d+>")
"""Tokens for locations (``<loc0000>``), segments (``<seg000>``) and nothing (``<unused0>``): never words."""


class PromptEncoder:
    """Turns images, instructions and captions into the model's inputs, and completions into text.

    Args:
        processor: of any supported family (:mod:`scst.models.families`).
        virtual_tokens: text put before every instruction: the reserved tokens that prompt tuning trains
            (:func:`scst.adapters.prompt_tuning.encoder_for`).

    Attributes:
        eos_token_id: ends a caption.
        pad_token_id: stands before prompts and behind captions.
    """

    def __init__(self, processor: Any, virtual_tokens: str = ""):
        self.processor = processor
        self.virtual_tokens = virtual_tokens
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.family = family_of_processor(processor)
        self.image_token_id = self.family.image_token_id(processor)
        self._before_caption, self.eos_token_id = self.family.answer_frame(processor)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_id if pad is None else pad
        self._prompt_texts: dict[str, str] = {}

    @classmethod
    def of(cls, processor: Any) -> PromptEncoder:
        """``processor`` itself when it is an encoder, else an encoder of it without virtual tokens."""
        return processor if isinstance(processor, cls) else cls(processor)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save the processor; virtual tokens are saved with the adapter."""
        return self.processor.save_pretrained(*args, **kwargs)

    def prompt_batch(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> PromptBatch:
        """What the policy conditions on.

        Args:
            images: B pictures of any mode and size.
            prompts: B instructions without the image token, e.g. ``caption en``.
        """
        rows = [self._encoded(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        length = max(len(row.ids) for row in rows)

        def padded(name: str, value: int | bool) -> torch.Tensor:
            tensors = [getattr(row, name) for row in rows]
            return torch.stack([pad(t, (length - t.shape[-1], 0), value=value) for t in tensors])

        return PromptBatch(
            input_ids=padded("ids", self.pad_token_id),
            attention_mask=padded("real", False),
            image_mask=padded("is_image", False),
            position_ids=padded("positions", self.family.first_position),
            block_ids=padded("blocks", -1),
            vision=[row.vision for row in rows],
        )

    def stand_in(self, image: Image.Image) -> Image.Image:
        """What may be encoded in place of an image whose features are known: as many image tokens, and no
        picture to decode."""
        return Image.new("RGB", image.size if self.family.varies_image_tokens else (1, 1))

    def encode_prompts(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Inputs of ``model.generate`` for left-padded prompts; arguments as in :meth:`prompt_batch`."""
        return self.generation_inputs(self.prompt_batch(images, prompts))

    def generation_inputs(self, batch: PromptBatch) -> dict[str, torch.Tensor]:
        """Inputs of ``model.generate`` for prompts."""
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            **self.family.forward_arguments(batch, batch.input_ids.shape[1]),
            **batched(batch.vision),
        }

    def encode_captions(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        captions: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> dict[str, torch.Tensor]:
        """Inputs of supervised training, for the model's own ``forward``: prompts, captions, their ends.

        Captions are cut to ``max_new_tokens`` tokens *before* encoding; a cut caption keeps no end, because
        the policy would be taught to end where its teacher went on.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` (B, P + T), ``position_ids``, the inputs of the
            vision tower and what else the family's ``forward`` needs; ``labels`` is -100 on prompt and
            padding.
        """
        batch = self.prompt_batch(images, prompts)
        caption_ids = [self.caption_token_ids(caption, max_new_tokens) for caption in captions]
        length = max(map(len, caption_ids))
        ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in caption_ids])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in caption_ids])
        ignored = torch.full_like(batch.input_ids, IGNORED_LABEL)
        # The positions of sampling. Left to itself a model counts padding too, which shifts captions against
        # a prefix of fixed positions (prefix tuning).
        behind = batch.position_ids[:, :, -1:] + mask.cumsum(1).unsqueeze(1)
        positions = torch.cat([batch.position_ids, behind], 2)
        return {
            "input_ids": torch.cat([batch.input_ids, ids], 1),
            "attention_mask": torch.cat([batch.attention_mask.long(), mask], 1),
            "position_ids": positions[:, 0] if positions.shape[1] == 1 else positions.transpose(0, 1),
            "labels": torch.cat([ignored, ids.masked_fill(mask == 0, IGNORED_LABEL)], 1),
            **self.family.forward_arguments(batch, batch.input_ids.shape[1] + length),
            **batched(batch.vision),
        }

    def _encoded(self, image: Image.Image, prompt: str) -> _EncodedPrompt:
        if prompt not in self._prompt_texts:
            self._prompt_texts[prompt] = self.family.prompt_text(self.processor, self.virtual_tokens + prompt)
        row, vision = self.family.encode_prompt(
            self.processor, image.convert("RGB"), self._prompt_texts[prompt]
        )
        ids = torch.tensor(row)
        is_image = ids == self.image_token_id
        positions = self.family.position_ids(self.processor, ids, is_image, vision)
        blocks = self.family.block_ids(is_image)
        return _EncodedPrompt(ids, torch.ones_like(is_image), is_image, positions, blocks, vision)

    def caption_token_ids(self, caption: str, max_new_tokens: int) -> list[int]:
        """Token ids of a human caption with its end, cut to ``max_new_tokens``.

        Every token returned can be sampled: blanks are collapsed as in decoded captions, and control tokens
        that the caption spells out (``<image>``, ``<eos>``) are left out.
        """
        text, eos = self._before_caption + " ".join(caption.split()), self.eos_token_id
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        words = [i for i in ids if i != eos and i not in self._control_ids]
        return [*words, eos][:max_new_tokens]

    def decode_captions(self, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Text of completions ``ids`` (N, T) where ``mask`` (N, T) is True, blanks collapsed."""
        rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(control_token_ids(self))


@dataclass(frozen=True)
class _EncodedPrompt:
    """One prompt of n tokens; fields as of :class:`PromptBatch`."""

    ids: torch.Tensor
    real: torch.Tensor
    is_image: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    vision: Vision


def control_token_ids(encoder: PromptEncoder) -> set[int]:
    """Ids of tokens that are no text: special ones but the caption's end, image, location, segment, unused.

    Whether a token stands in ``added_tokens_decoder`` says nothing: Gemma's tokenizer lists runs of spaces,
    newlines and HTML tags there, which human captions contain.
    """
    tokenizer = encoder.tokenizer
    control = special_token_ids(tokenizer) | {encoder.image_token_id}
    control |= {i for token, i in tokenizer.get_vocab().items() if PLACEHOLDERS.fullmatch(token)}
    control.discard(encoder.eos_token_id)
    return control


def forbidden_token_ids(processor: Any, vocab_size: int) -> list[int]:
    """Tokens that must never stand in a caption, in sampling, scoring and decoding alike.

    These are :func:`control_token_ids` and the ids below ``vocab_size`` that the tokenizer does not know. A
    sampled ``<image>`` would make the next forward pass fail; the others have no text.
    """
    encoder = PromptEncoder.of(processor)
    unknown = set(range(vocab_size)) - set(encoder.tokenizer.get_vocab().values())
    return sorted(i for i in control_token_ids(encoder) | unknown if i < vocab_size)


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
    words = words[words != PromptEncoder.of(processor).eos_token_id]
    chosen = torch.randint(len(words), (count,), generator=torch.Generator().manual_seed(seed))
    return words[chosen]
