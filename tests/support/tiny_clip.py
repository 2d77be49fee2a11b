"""Tiny random CLIP, SigLIP, SigLIP 2 and BERT checkpoints with tokeniser and image processor, in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GemmaTokenizer,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.support.tiny import SENTENCES, build_processor, build_tokenizer

SIZE, PATCH, WIDTH = 32, 8, 32
_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

BERT_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def save_clip(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A CLIP that reads 77 tokens, one per character, and 32-pixel images."""
    characters = list(bytes_to_unicode().values())
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=_TOWER | text, vision_config=_vision(), projection_dim=16)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    return _save(folder, CLIPModel(config).to(dtype), tokenizer, image_processor)


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """A SigLIP that reads 64 tokens, with a Gemma tokeniser, as published SigLIP 2 of fixed size are."""
    torch.manual_seed(seed)
    config = SiglipConfig(text_config=_siglip_text(), vision_config=_vision())
    return _save(folder, SiglipModel(config), _siglip_tokenizer(), build_processor(SIZE).image_processor)


def save_siglip2(folder: Path, seed: int = 0) -> Path:
    """A SigLIP 2 NaFlex, which keeps an image's aspect ratio."""
    torch.manual_seed(seed)
    vision = _TOWER | {"patch_size": PATCH, "num_patches": 16}
    config = Siglip2Config(text_config=_siglip_text(), vision_config=vision)
    image_processor = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16)
    return _save(folder, Siglip2Model(config), _siglip_tokenizer(), image_processor)


def save_bert(folder: Path, seed: int = 0) -> Path:
    """A BERT that reads 48 tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*specials, *words, *letters, *(f"##{letter}" for letter in letters), "."]
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **BERT_SIZE)
    BertModel(config).save_pretrained(folder)
    numbered = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    BertTokenizer(vocab=numbered, model_max_length=48).save_pretrained(folder)
    return Path(folder)


def _vision() -> dict[str, int]:
    return _TOWER | {"image_size": SIZE, "patch_size": PATCH}


def _siglip_text() -> dict[str, int]:
    return _TOWER | {
        "vocab_size": len(build_tokenizer()),
        "max_position_embeddings": 64,
        "projection_size": WIDTH,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def _siglip_tokenizer() -> GemmaTokenizer:
    gemma = build_tokenizer()
    return GemmaTokenizer(
        vocab=gemma._vocab, merges=gemma._merges, padding_side="right", model_input_names=["input_ids"]
    )


def _save(folder: Path, model, tokenizer, image_processor) -> Path:
    """Weights are spread wide, so that different inputs point into different directions."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.2)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(folder)
    return Path(folder)
