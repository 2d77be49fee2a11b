"""Tiny models of other families than PaliGemma, with their real processor classes and chat templates.

For tests (random weights), and to be trained on rendered scenes (:mod:`scst.data.scenes.family_model`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scst.models.processors import without_video

FAMILIES = (
    "llava",
    "llava_onevision",
    "smolvlm",
    "idefics3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "internvl",
)
"""``model_type`` of every family that a tiny model can be built of."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny model.

    Attributes:
        width: of the decoder and of the vision tower; the MLPs are twice as wide.
        layers: of the decoder.
        vision_layers: of the vision tower.
        side: pixels of a picture, or of one of its tiles.
        patch: pixels of a patch of the vision tower; Qwen-VL's are half as large, four of them a token.
        vocabulary: tokens of text, about.
        window: of the sliding layers of Gemma 3.
    """

    width: int = 32
    layers: int = 4
    vision_layers: int = 2
    side: int = 32
    patch: int = 8
    vocabulary: int = 500
    window: int = 6

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.side // self.patch


_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
TEMPLATES = {
    "llava": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "llava_onevision": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}"
        "{{ '\n' + part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "smolvlm": (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "qwen2_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "gemma3": (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}"
        "{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "internvl": _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
}
_CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL = {
    "llava": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
    "llava_onevision": [*_CHATML_TOKENS, "<image>", "<video>"],
    "smolvlm": [
        *("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>"),
        *("<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5))),
    ],
    "qwen2_vl": [
        *_CHATML_TOKENS,
        *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    ],
    "gemma3": [
        *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
        *("<end_of_image>", "<image_soft_token>", "<unused0>", "<unused1>", "<unused2>", "<unused3>"),
    ],
    "internvl": [*_CHATML_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
}
_SAME = {"idefics3": "smolvlm", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen2_vl"}
_ENDS = {  # bos, eos, pad, as the checkpoints name them
    "llava": ("<s>", "</s>", "<pad>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>", "<|im_end|>"),
    "gemma3": ("<bos>", "<eos>", "<pad>"),
}
_NAMED = {
    "gemma3": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
}


def build_tokenizer(name: str, texts: Sequence[str], shape: Shape) -> PreTrainedTokenizerFast:
    """A byte-level BPE, learned from texts, with the special tokens of a family."""
    key = _SAME.get(name, name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL[key], *(["<|im_end|>"] if key == "smolvlm" else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *(" " + text for text in texts)], trainer=trainer)
    bos, eos, pad = _ENDS.get(key, (None, "<|im_end|>", "<|endoftext|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=special,
        extra_special_tokens=_NAMED.get(key, {}),
    )


def build_processor(name: str, texts: Sequence[str], shape: Shape) -> Any:
    """The processor of a family.

    A picture takes a token per patch, or per four patches; a larger one more, where the family has a choice.
    """
    tokenizer, key = build_tokenizer(name, texts, shape), _SAME.get(name, name)
    side, patch, tokens = shape.side, shape.patch, (shape.grid // 2) ** 2
    template = TEMPLATES[name if name in TEMPLATES else key]
    classes: Any = transformers
    if name == "llava":
        images = _image_processor(
            "llava", size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        return classes.LlavaProcessor(
            images, tokenizer, patch_size=patch, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=template,
        )  # fmt: skip
    if name == "llava_onevision":
        pinpoints = [[side * rows, side * columns] for rows in (1, 2) for columns in (1, 2)]
        images = _image_processor(
            "llava_onevision", size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
        )
        return without_video(classes.LlavaOnevisionProcessor)(
            images, tokenizer, None, num_image_tokens=shape.grid**2, vision_feature_select_strategy="full",
            chat_template=template,
        )  # fmt: skip
    if key == "smolvlm":
        kind = "SmolVLM" if name == "smolvlm" else "Idefics3"
        images = _image_processor(
            name, size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side}, resample=1
        )
        made = without_video(getattr(classes, f"{kind}Processor"))
        parts = (images, tokenizer, None) if name == "smolvlm" else (images, tokenizer)
        return made(*parts, image_seq_len=tokens, chat_template=template)
    if key == "qwen2_vl":
        kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
        images = _image_processor(
            "qwen2_vl", size={"shortest_edge": patch**2, "longest_edge": side**2}, patch_size=patch // 2
        )
        return without_video(getattr(classes, f"{kind}Processor"))(images, tokenizer, chat_template=template)
    if name == "gemma3":
        images = _image_processor("gemma3", size={"height": side, "width": side})
        return classes.Gemma3Processor(images, tokenizer, image_seq_length=tokens, chat_template=template)
    images = _image_processor("got_ocr2", size={"height": side, "width": side}, max_patches=4)
    return without_video(classes.InternVLProcessor)(
        images, tokenizer, image_seq_length=tokens, chat_template=template
    )


def _image_processor(module: str, **settings: Any) -> Any:
    """The image processor of a module of transformers that needs pillow only."""
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    made = [value for name, value in vars(found).items() if name.endswith("ImageProcessorPil")]
    return made[0](**settings)


def build_config(name: str, processor: Any, shape: Shape) -> Any:
    """The configuration of a tiny model for a processor."""
    width = shape.width
    tokenizer = processor.tokenizer
    ids = {token: i for token, i in tokenizer.get_vocab().items() if token.startswith("<")}
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 512,
        "vocab_size": len(tokenizer) + 3,  # as checkpoints have, rows without a token
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tower: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": 4,
        "image_size": shape.side,
        "patch_size": shape.patch,
    }
    siglip = tower | {"model_type": "siglip_vision_model", "vision_use_head": False}
    classes: Any = transformers
    if name == "llava":
        clip = tower | {"model_type": "clip_vision_model"}
        return classes.LlavaConfig(
            text_config=text | {"model_type": "llama"}, vision_config=clip, image_token_index=ids["<image>"]
        )
    if name == "llava_onevision":
        return classes.LlavaOnevisionConfig(
            text_config=text | {"model_type": "qwen2"}, vision_config=siglip, vision_feature_layer=-1,
            image_token_index=ids["<image>"], video_token_index=ids["<video>"],
            image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        )  # fmt: skip
    if name in ("smolvlm", "idefics3"):
        made = classes.SmolVLMConfig if name == "smolvlm" else classes.Idefics3Config
        return made(
            text_config=text | {"model_type": "llama"}, vision_config=tower, image_token_id=ids["<image>"],
            scale_factor=2, pad_token_id=text["pad_token_id"],
        )  # fmt: skip
    if name.startswith("qwen"):
        made = getattr(
            classes,
            {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name] + "Config",
        )
        rope: dict[str, Any] = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": _axes(width // 8),
        }
        if name == "qwen3_vl":
            rope |= {"mrope_interleaved": True}
        vision: dict[str, Any] = {
            "depth": shape.vision_layers + 1,
            "num_heads": 4,
            "patch_size": shape.patch // 2,
            "in_channels": 3,
        }
        if name == "qwen2_vl":
            vision |= {"embed_dim": width, "hidden_size": width, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": width, "intermediate_size": 2 * width, "out_hidden_size": width}
        if name == "qwen2_5_vl":
            vision |= {"window_size": 2 * shape.patch, "fullatt_block_indexes": [1]}
        if name == "qwen3_vl":
            vision |= {"num_position_embeddings": (2 * shape.grid) ** 2, "deepstack_visual_indexes": [0, 1]}
        return made(
            text_config=text | {"rope_parameters": rope}, vision_config=vision,
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        )  # fmt: skip
    if name == "gemma3":
        window = {
            "sliding_window": shape.window,
            "layer_types": ["sliding_attention", "full_attention"] * (shape.layers // 2),
            "query_pre_attn_scalar": width // 4,
        }
        return classes.Gemma3Config(
            text_config=text | window, vision_config=siglip, mm_tokens_per_image=(shape.grid // 2) ** 2,
            image_token_index=ids["<image_soft_token>"], boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
        )  # fmt: skip
    tiles = tower | {"image_size": [shape.side] * 2, "patch_size": [shape.patch] * 2}
    return classes.InternVLConfig(
        text_config=text | {"model_type": "qwen2"}, vision_config=tiles,
        image_seq_length=(shape.grid // 2) ** 2, image_token_id=ids["<IMG_CONTEXT>"],
    )  # fmt: skip


def _axes(pairs: int) -> list[int]:
    """Rotary pairs of time, height and width: half of them of width and height each a quarter more."""
    return [pairs - 2 * (pairs * 3 // 8), pairs * 3 // 8, pairs * 3 // 8]
