"""Random models for measurements: weights do not change the speed, and nothing is downloaded.

Two shapes, for PaliGemma 1 and 2 at 224 px (256 image tokens): ``middle``, whose parts take time in the
proportions of the real model, minutes on one CPU thread; and ``3b``, the real one, for a GPU. Models go
through a checkpoint on disk and :func:`scst.models.pretrained.load_model`, so that quantisation, precision
and attention kernel are those of a training run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_SIZE, PATCH = 224, 14
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
MIDDLE_VOCABULARY, VOCABULARY_3B = 8192, 257_216
MIDDLE_VISION_LAYERS = 4
MIDDLE_DECODERS = {
    1: {"num_hidden_layers": 6, "num_key_value_heads": 1, "mlp": 8},
    2: {"num_hidden_layers": 10, "num_key_value_heads": 2, "mlp": 4},
}
"""Gemma 2B has an MLP of 8 times its width and one key-value head, Gemma 2 2B one of 4 times and more heads.
Layers are chosen so that the parts of a rollout cost what they cost at 3 B: vision a fifth of the prefill,
decoding (B=8, K=5, T=16) less than half of it."""

_NUM_ADDED_TOKENS = 1024 + 128 + 1
"""Locations, segments and the image placeholder: PaliGemma's processor adds them to any tokeniser."""


@dataclass(frozen=True)
class ModelShape:
    """What is built.

    Attributes:
        version: PaliGemma 1 or 2.
        size: ``middle`` or ``3b``.
        width: hidden size of decoder and vision tower; of the middle size only.
        vocabulary: V; of the middle size only.
        layers: of decoder and vision tower, in place of those of the real model; of 3b only.
    """

    version: int = 1
    size: str = "middle"
    width: int = 512
    vocabulary: int = MIDDLE_VOCABULARY
    layers: int | None = None

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding and of the language-model head."""
        return VOCABULARY_3B if self.size == "3b" else self.vocabulary


def build_processor(num_tokens: int) -> Any:
    """A processor whose every token but the special ones has a text, so that random captions have one.

    Args:
        num_tokens: size of the vocabulary, added tokens included.
    """
    from transformers import GemmaTokenizer

    from tests.support.tiny import build_processor as build_tiny_processor
    from tests.support.tiny import build_tokenizer

    model = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for i in range(len(vocabulary), num_tokens - _NUM_ADDED_TOKENS):
        vocabulary[f"▁{_word(i)}"] = i
    merges = [tuple(merge) for merge in model["merges"]]
    processor = build_tiny_processor(image_size=IMAGE_SIZE, patch=PATCH)
    return type(processor)(processor.image_processor, GemmaTokenizer(vocab=vocabulary, merges=merges))


def _word(number: int) -> str:
    """One of 256 words of twelve letters, in one of 4096 ways to write it in capitals.

    Rewards do not see capitals: so few words are shared by the captions and references of a random model, and
    hardly any reward is zero.
    """
    number, word = divmod(number, 256)
    letters = f"{word:08b}{word % 16:04b}".translate({ord("0"): "a", ord("1"): "e"})
    return "".join(c.upper() if number >> i & 1 else c for i, c in enumerate(letters))


def build_config(shape: ModelShape, processor: Any) -> Any:
    """The configuration of a shape."""
    if shape.size == "3b":
        return _config_3b(shape, processor)
    from tests.support.tiny import build_config as build_tiny_config

    decoder = dict(MIDDLE_DECODERS[shape.version])
    return build_tiny_config(
        processor,
        version=shape.version,
        image_size=IMAGE_SIZE,
        patch=PATCH,
        width=shape.width,
        layers=MIDDLE_VISION_LAYERS,
        intermediate_size=decoder.pop("mlp") * shape.width,
        vocab_size=shape.vocabulary,
        **decoder,
    )


def _config_3b(shape: ModelShape, processor: Any) -> Any:
    """google/paligemma-3b-pt-224 and google/paligemma2-3b-pt-224, as their ``config.json`` has it."""
    from transformers import Gemma2Config, GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=shape.layers or 27,
        num_attention_heads=16,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    common = special | {"vocab_size": VOCABULARY_3B, "num_attention_heads": 8, "head_dim": 256}
    if shape.version == 1:
        width = 2048
        text = GemmaConfig(
            hidden_size=width,
            intermediate_size=16384,
            num_hidden_layers=shape.layers or 18,
            num_key_value_heads=1,
            **common,
        )
    else:
        width = 2304
        text = Gemma2Config(
            hidden_size=width,
            intermediate_size=9216,
            num_hidden_layers=shape.layers or 26,
            num_key_value_heads=4,
            query_pre_attn_scalar=256,
            **common,
        )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        projection_dim=width,
        hidden_size=width,
        vocab_size=VOCABULARY_3B,
        **special,
    )
    config._attn_implementation = "sdpa" if shape.version == 1 else "eager"
    return config


def write_checkpoint(shape: ModelShape, folder: Path, *, device: str = "cpu", seed: int = 0) -> None:
    """A random checkpoint with its processor, as :func:`scst.models.pretrained.load_model` reads it.

    Weights of the real size are drawn on ``device`` in bfloat16: 6 GB on the disk. (That size: not run.)
    """
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    processor = build_processor(shape.num_tokens)
    config = build_config(shape, processor)
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if shape.size == "3b" else torch.float32
    with torch.device(device):
        model = PaliGemmaForConditionalGeneration._from_config(config, dtype=dtype)
    spread = 0.3 * math.sqrt(
        512 / config.text_config.hidden_size
    )  # with the usual 0.02 tokens repeat themselves
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "language_model" in name and "embed" not in name:
            parameter.data.normal_(0, spread)
    model.generation_config.update(pad_token_id=0, eos_token_id=1, bos_token_id=2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_adapted(folder: Path, *, precision: str, quantization: str, rank: int = 16) -> Any:
    """The model of a checkpoint with a new adapter on the decoder's attention, as the SFT stage makes it.

    The adapter's ``B`` is drawn too: with the usual zeros half of the gradients would be zero.
    """
    import torch

    from scst.adapters.lora import add_lora
    from scst.models.pretrained import load_model

    model = load_model(str(folder), precision=precision, quantization=quantization)
    torch.manual_seed(1)
    model = add_lora(model, targets="decoder-attention", rank=rank, alpha=2.0 * rank)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 1e-3)
    return model
