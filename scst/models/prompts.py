"""Prompt format of the PaliGemma family: from images, prompts and captions to ids, types and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from scst.errors import RecipeError
from scst.types import IGNORED_LABEL, PromptBatch

IMAGE_TOKEN = "<image>"


def encode_prompts(
    processor: Any, images: Sequence[Image.Image], prompts: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Inputs of ``model.generate``: left-padded prompts whose tokens all have type 0 (bidirectional).

    Args:
        processor: a PaliGemma processor; the virtual tokens that an adapter was given for it
            (:func:`scst.adapters.prompt_tuning.use_virtual_tokens`) come before every instruction.
        images: B pictures of any mode and size.
        prompts: B instructions without the image token, e.g. ``caption en``.

    Returns:
        ``input_ids``, ``attention_mask``, ``token_type_ids`` (B, P) and ``pixel_values`` (B, 3, H, W).
    """
    virtual_tokens = getattr(processor, "virtual_tokens", "")
    batch = processor(
        text=[IMAGE_TOKEN + virtual_tokens + prompt for prompt in prompts],
        images=[image.convert("RGB") for image in images],
        return_tensors="pt",
        padding="longest",
        padding_side="left",
    )
    batch.pop("labels", None)  # the processor always makes them; `generate` does not want them
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return dict(batch)


def prompt_batch(processor: Any, images: Sequence[Image.Image], prompts: Sequence[str]) -> PromptBatch:
    """The record that rollouts start from; arguments as in :func:`encode_prompts`."""
    inputs = encode_prompts(processor, images, prompts)
    return PromptBatch(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["pixel_values"])


def encode_captions(
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    captions: Sequence[str],
    *,
    max_new_tokens: int,
) -> dict[str, torch.Tensor]:
    """Inputs of supervised training: prompt (type 0, not trained), caption and ``<eos>`` (type 1, trained).

    Captions are cut to ``max_new_tokens`` tokens *before* encoding; a cut caption keeps no ``<eos>``, because
    the policy would be taught to end where its teacher went on. Positions are those of sampling: by itself
    the model would count padding, which a prefix of fixed positions (prefix tuning) notices.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids``, ``token_type_ids``, ``labels`` (B, P + T) and
        ``pixel_values``;
        ``labels`` is -100 on prompt and padding.
    """
    prompt_inputs = encode_prompts(processor, images, prompts)
    caption_ids = [caption_token_ids(processor, caption, max_new_tokens) for caption in captions]
    length = max(map(len, caption_ids))
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in caption_ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in caption_ids])
    attention_mask = torch.cat([prompt_inputs["attention_mask"], mask], 1)
    return {
        "input_ids": torch.cat([prompt_inputs["input_ids"], ids], 1),
        "attention_mask": attention_mask,
        "position_ids": attention_mask.cumsum(1).clamp(min=1),
        "token_type_ids": torch.cat([prompt_inputs["token_type_ids"], torch.ones_like(ids)], 1),
        "labels": torch.cat(
            [
                torch.full_like(prompt_inputs["input_ids"], IGNORED_LABEL),
                ids.masked_fill(mask == 0, IGNORED_LABEL),
            ],
            1,
        ),
        "pixel_values": prompt_inputs["pixel_values"],
    }


def caption_token_ids(processor: Any, caption: str, max_new_tokens: int) -> list[int]:
    """Token ids of a caption with its ``<eos>``, cut to ``max_new_tokens``."""
    tokenizer = processor.tokenizer
    ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id][:max_new_tokens]


def decode_captions(processor: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """Text of completions (N, T), padding and special tokens removed."""
    rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
    texts = processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


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


def forbidden_token_ids(processor: Any, vocab_size: int) -> list[int]:
    """Tokens that must never stand in a caption, in sampling, scoring and decoding alike.

    These are the special tokens except ``<eos>``, the image placeholder, the location and segmentation tokens
    (``<loc0000>``, ``<seg000>``), which PaliGemma's processor adds, and ids that the tokeniser does not know.
    A sampled ``<image>`` would make the next forward pass fail; the others are no words.
    """
    tokenizer = processor.tokenizer
    forbidden = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    forbidden |= {i for token, i in tokenizer.get_added_vocab().items() if token.startswith("<")}
    forbidden.add(processor.image_token_id)
    forbidden |= set(range(len(tokenizer), vocab_size))
    forbidden.discard(tokenizer.eos_token_id)
    return sorted(i for i in forbidden if i < vocab_size)


def forbidden_token_mask(processor: Any, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(V,) bool, True on the tokens of :func:`forbidden_token_ids`."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[forbidden_token_ids(processor, vocab_size)] = True
    return mask
