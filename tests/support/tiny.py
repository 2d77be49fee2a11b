"""Builders of tiny random PaliGemma models, for tests and benchmarks."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SENTENCES = (
    "two planes are parked next to a long building in an airport",
    "many buildings and green trees are in a dense residential area",
    "a river goes through the green forest",
    "several boats are in a port near some houses",
    "a large tank is near a road on a bare ground",
    "four tennis courts are surrounded by trees",
)


def build_tokenizer(vocab_size: int = 600, texts=SENTENCES) -> GemmaTokenizer:
    """A Gemma tokenizer (BPE with byte fallback) trained on a few sentences."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"] + [f"<0x{i:02X}>" for i in range(256)] + ["\n"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([*texts, *("▁" + text for text in texts), "caption en"], trainer=trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]
    ]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges)


def build_processor(image_size: int = 32, patch: int = 8, vocab_size: int = 600) -> PaliGemmaProcessor:
    """A PaliGemma processor for square images."""
    image_processor = SiglipImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image_processor.image_seq_length = (image_size // patch) ** 2
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=build_tokenizer(vocab_size))


def build_config(
    processor,
    *,
    version: int = 1,
    image_size: int = 32,
    patch: int = 8,
    width: int = 64,
    layers: int = 2,
    **text,
) -> PaliGemmaConfig:
    """Configuration of a tiny PaliGemma; ``text`` overrides settings of the language model."""
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
        vision_use_head=False,
    )
    common = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": width // 4,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "max_position_embeddings": 2048,
    } | text
    text_config = (
        GemmaConfig(**common) if version == 1 else Gemma2Config(**common, query_pre_attn_scalar=width // 4)
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=processor.image_token_id,
        projection_dim=width,
        hidden_size=width,
        vocab_size=common["vocab_size"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    config._attn_implementation = "sdpa" if version == 1 else "eager"
    return config


def build_model(processor, *, version: int = 1, seed: int = 0, **config) -> PaliGemmaForConditionalGeneration:
    """A random model whose greedy captions are not constant: decoder weights are spread wide."""
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(build_config(processor, version=version, **config))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "language_model" in name and "embed" not in name:
            parameter.data.normal_(0, 0.3)
    model.generation_config.update(pad_token_id=0, eos_token_id=1, bos_token_id=2)
    return model.eval()


def noise_images(count: int, size: int = 32, seed: int = 0) -> list[Image.Image]:
    """Random RGB images."""
    rng = np.random.RandomState(seed)
    return [Image.fromarray(rng.randint(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]
