"""Generates captions of images, batch by batch, and records whether each of them ended by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import GenerationConfig, GenerationMixin

from scst.adapters.prompt_tuning import encoder_for
from scst.errors import DataError, RecipeError
from scst.evaluation.decoding import Decoding, bare_generation_defaults, get_decoding, to_generation_config
from scst.models.policy import evaluation_mode
from scst.models.prompts import PromptEncoder, forbidden_token_ids
from scst.types import Caption


def caption_images(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompts: str | Sequence[str],
    decoding: Decoding | str,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Caption]:
    """Caption every image; the model's mode, generation defaults and the random state stay as they were.

    Args:
        model: with or without a PEFT adapter.
        processor: its processor.
        images: N pictures; read one batch at a time, so a lazy column is fine.
        prompts: one instruction for all, or N of them; without the image token.
        decoding: a preset or its name.
        max_new_tokens: length limit, end-of-sequence token included.
        min_new_tokens: the end-of-sequence token is impossible before this many tokens.
        batch_size: images at a time. Sampled captions depend on it, greedy and beam captions do not.
        seed: of the sampling presets.
        progress: called with the number of images just captioned, once per batch.

    Returns:
        N captions in the order of the images.

    Raises:
        DataError: the numbers of images and prompts differ.
        RecipeError: an unknown preset, or an impossible length limit or batch size.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size must be at least 1, got {batch_size}")
    prompts = _one_prompt_per_image(prompts, len(images))
    encoder = encoder_for(model, processor)
    _check_beams(encoder, get_decoding(decoding))
    config = _generation_config(model, encoder, get_decoding(decoding), max_new_tokens, min_new_tokens)
    captions: list[Caption] = []
    with _decoding_state(model, seed):
        for start in range(0, len(images), batch_size):
            rows = range(start, min(start + batch_size, len(images)))
            batch = encoder.encode_prompts([images[i] for i in rows], [prompts[i] for i in rows])
            captions += _caption_batch(model, encoder, batch, config)
            if progress is not None:
                progress(len(rows))
    return captions


def _check_beams(encoder: PromptEncoder, decoding: Decoding) -> None:
    """Versions of transformers before `generate` computed image features once repeat vision inputs row by row
    for beams; a family with several rows an image then sees tiles of other images."""
    if decoding.num_beams == 1 or not encoder.family.several_rows_per_image:
        return
    if not hasattr(GenerationMixin, "_expand_multimodal_outputs"):
        raise RecipeError(
            f"decoding: with transformers {transformers.__version__} the beams of this family would see the "
            "tiles of other images; use a decoding without beams, or transformers 5.23"
        )


def _one_prompt_per_image(prompts: str | Sequence[str], num_images: int) -> list[str]:
    if isinstance(prompts, str):
        return [prompts] * num_images
    if len(prompts) != num_images:
        raise DataError(f"expected one prompt or {num_images} (one per image), got {len(prompts)} prompts")
    return list(prompts)


def _generation_config(
    model: Any, encoder: PromptEncoder, decoding: Decoding, max_new_tokens: int, min_new_tokens: int
) -> GenerationConfig:
    return to_generation_config(
        decoding,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_id=encoder.eos_token_id,
        pad_token_id=encoder.pad_token_id,
        bos_token_id=encoder.tokenizer.bos_token_id,
        suppress_tokens=forbidden_token_ids(encoder, model.config.get_text_config().vocab_size),
    )


def _caption_batch(
    model: Any, encoder: PromptEncoder, batch: dict[str, torch.Tensor], config: GenerationConfig
) -> list[Caption]:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    # The weights are whole here, also where training divides them: processes need not wait for each other.
    sequences = model.generate(**inputs, generation_config=config, synced_gpus=False)  # (B, P + T)
    completions = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [_to_caption(encoder, ids) for ids in completions]


def _to_caption(encoder: PromptEncoder, ids: list[int]) -> Caption:
    eos = encoder.eos_token_id
    length = ids.index(eos) if eos in ids else len(ids)
    text = encoder.tokenizer.decode(ids[:length], skip_special_tokens=True)
    return Caption(" ".join(text.split()), eos in ids, length + (eos in ids))


@contextmanager
def _decoding_state(model: Any, seed: int) -> Iterator[None]:
    defaults, seeded = bare_generation_defaults(model), _seeded(seed, model.device)
    with evaluation_mode(model), defaults, seeded, torch.no_grad():
        yield


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    # evaluations within a training run must not change what the run draws next
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
