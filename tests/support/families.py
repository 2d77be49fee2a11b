"""A tiny random model of every family, with its real processor class and its checkpoints' chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scst.models.families.family import Family
from scst.models.policy import Policy, policy_for
from scst.models.processors import without_video
from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.rollout.distribution import rollout_uniforms
from scst.types import PromptBatch, Sampling
from tests.support import tiny
from tests.support.worlds import write_risc

FAMILIES = (
    "paligemma",
    "paligemma2",
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
INSTRUCTIONS = ["describe this image", "what is in the forest near the river"]

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


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens of a family."""
    key = _SAME.get(name, name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL[key], *(["<|im_end|>"] if key == "smolvlm" else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*tiny.SENTENCES, *INSTRUCTIONS], trainer=trainer)
    bos, eos, pad = _ENDS.get(key, (None, "<|im_end|>", "<|endoftext|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=special,
        extra_special_tokens=_NAMED.get(key, {}),
    )


def build_processor(name: str) -> Any:
    """The processor of a family: pictures of 32 or 64 pixels and few tokens."""
    if name.startswith("paligemma"):
        return tiny.build_processor()
    tokenizer, key = build_tokenizer(name), _SAME.get(name, name)
    template = TEMPLATES[name if name in TEMPLATES else key]
    classes: Any = transformers
    if name == "llava":
        images = _image_processor("llava", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return classes.LlavaProcessor(
            images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=template,
        )  # fmt: skip
    if name == "llava_onevision":
        pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
        images = _image_processor(
            "llava_onevision", size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
        )
        return without_video(classes.LlavaOnevisionProcessor)(
            images, tokenizer, None, num_image_tokens=16, vision_feature_select_strategy="full",
            chat_template=template,
        )  # fmt: skip
    if key == "smolvlm":
        kind = "SmolVLM" if name == "smolvlm" else "Idefics3"
        images = _image_processor(
            name, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, resample=1
        )
        made = without_video(getattr(classes, f"{kind}Processor"))
        parts = (images, tokenizer, None) if name == "smolvlm" else (images, tokenizer)
        return made(*parts, image_seq_len=4, chat_template=template)
    if key == "qwen2_vl":
        kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
        images = _image_processor(
            "qwen2_vl", size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}, patch_size=4
        )
        return without_video(getattr(classes, f"{kind}Processor"))(images, tokenizer, chat_template=template)
    if name == "gemma3":
        images = _image_processor("gemma3", size={"height": 32, "width": 32})
        return classes.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)
    images = _image_processor("got_ocr2", size={"height": 32, "width": 32}, max_patches=4)
    return without_video(classes.InternVLProcessor)(
        images, tokenizer, image_seq_length=4, chat_template=template
    )


def _image_processor(module: str, **settings: Any) -> Any:
    """The image processor of a module of transformers that needs pillow only."""
    import importlib

    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    made = [value for name, value in vars(found).items() if name.endswith("ImageProcessorPil")]
    return made[0](**settings)


_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def build_config(name: str, processor: Any) -> Any:
    """The configuration of a tiny model for a processor."""
    tokenizer = processor.tokenizer
    ids = {token: i for token, i in tokenizer.get_vocab().items() if token.startswith("<")}
    text: dict[str, Any] = _TEXT | {
        "vocab_size": len(tokenizer) + 3,  # as checkpoints have, rows without a token
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    siglip = _SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
    classes: Any = transformers
    if name == "llava":
        vision = _SIGLIP | {"model_type": "clip_vision_model"}
        return classes.LlavaConfig(
            text_config=text | {"model_type": "llama"}, vision_config=vision, image_token_index=ids["<image>"]
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
            text_config=text | {"model_type": "llama"}, vision_config=_SIGLIP, image_token_id=ids["<image>"],
            scale_factor=2, pad_token_id=text["pad_token_id"],
        )  # fmt: skip
    if name.startswith("qwen"):
        made = getattr(
            classes,
            {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name] + "Config",
        )
        rope = dict(_MROPE, mrope_interleaved=True) if name == "qwen3_vl" else dict(_MROPE)
        vision = {"depth": 3, "num_heads": 4, "patch_size": 4, "in_channels": 3}
        if name == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
        if name == "qwen2_5_vl":
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        if name == "qwen3_vl":
            vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        return made(
            text_config=text | {"rope_parameters": rope}, vision_config=vision,
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        )  # fmt: skip
    if name == "gemma3":
        window = {
            "sliding_window": 6,  # fewer tokens than a prompt has
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 8,
        }
        return classes.Gemma3Config(
            text_config=text | window, vision_config=siglip, mm_tokens_per_image=4,
            image_token_index=ids["<image_soft_token>"], boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
        )  # fmt: skip
    vision = _SIGLIP | {"image_size": [32, 32], "patch_size": [8, 8]}
    return classes.InternVLConfig(
        text_config=text | {"model_type": "qwen2"}, vision_config=vision, image_seq_length=4,
        image_token_id=ids["<IMG_CONTEXT>"],
    )  # fmt: skip


def build_model(name: str, processor: Any, *, kernel: str = "sdpa", seed: int = 0, **text: Any) -> Any:
    """A random model of a family whose greedy captions are not constant."""
    if name.startswith("paligemma"):
        version = 2 if name == "paligemma2" else 1
        model = tiny.build_model(processor, version=version, seed=seed, **text)
        model.set_attn_implementation("eager" if version == 2 else kernel)
        return model
    torch.manual_seed(seed)
    config = build_config(name, processor)
    for key, value in text.items():
        setattr(config.get_text_config(), key, value)
    config._attn_implementation = kernel
    model: Any = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation=kernel)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "norm" not in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5 if "embed_tokens" in parameter_name else 0.12)
        if "mm_input_projection" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pictures(name: str, count: int = 2) -> list[Image.Image]:
    """Noise, of different shapes: families whose image tokens follow the picture get different numbers."""
    shapes = ((64, 32), (32, 32), (40, 64), (64, 64))
    rng = np.random.RandomState(3)
    return [
        Image.fromarray(rng.randint(0, 255, (*shapes[i % len(shapes)], 3), dtype=np.uint8))
        for i in range(count)
    ]


@dataclass(frozen=True)
class World:
    """A family with everything that its tests need."""

    name: str
    model: Any
    processor: Any
    encoder: PromptEncoder
    policy: Policy
    padded: bool

    @property
    def images(self) -> list[Any]:
        return pictures(self.name)

    @property
    def instructions(self) -> list[str]:
        return INSTRUCTIONS if self.padded else INSTRUCTIONS[:1] * 2

    @property
    def prompts(self) -> PromptBatch:
        return self.encoder.prompt_batch(self.images, self.instructions)


def make_world(name: str, kernel: str | None = None, *, padded: bool = True, **text: Any) -> World:
    """A family in its usual attention kernel or the given one; ``text`` overrides settings of its decoder."""
    processor = build_processor(name)
    kernel = kernel or ("eager" if name == "paligemma2" else "sdpa")
    model = build_model(name, processor, kernel=kernel, **text)
    return World(name, model, processor, PromptEncoder.of(processor), policy_for(model, processor), padded)


STEPS = 7
"""Tokens of the captions that are sampled."""


def sampled(world, num_samples=3, steps=STEPS):
    sampling = Sampling(num_samples, max_new_tokens=steps, min_new_tokens=2)
    noise = rollout_uniforms(["a", "b"], seed=0, step=0, num_samples=num_samples, length=steps)
    return rollout(world.policy, world.processor, world.prompts, sampling, noise), sampling


def own_logits(world, image, ids):
    """(T, V) by the model's own ``forward`` from pixels: one image and caption, no padding, a 2-D mask, the
    library's positions."""
    encoder = world.encoder
    prompt = encoder.prompt_batch(world.images[image : image + 1], world.instructions[image : image + 1])
    inputs = encoder.generation_inputs(prompt)
    length = prompt.input_ids.shape[1] + len(ids)
    inputs |= world.encoder.family.forward_arguments(prompt, length)
    inputs["input_ids"] = torch.cat([prompt.input_ids, ids[None]], 1)
    inputs["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    return world.model(**inputs, use_cache=False).logits[0, prompt.input_ids.shape[1] - 1 : -1]


def own_logprobs(world, ids, mask, sampling):
    """(B, K, T) of all captions, one by one."""
    found = torch.zeros(ids.shape)
    for image, rows in enumerate(ids):
        for k, row in enumerate(rows):
            tokens = row[mask[image, k]]
            logits = own_logits(world, image, tokens).masked_fill(world.policy.forbidden, -torch.inf)
            too_early = torch.arange(len(tokens)) < sampling.min_new_tokens
            logits[too_early[: len(logits)], world.encoder.eos_token_id] = -torch.inf
            logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            found = found.index_put(
                (torch.tensor(image), torch.tensor(k), torch.arange(len(tokens))), logprobs
            )
    return found


RULES = {
    "multimodal positions": ("qwen2_5_vl", "position_ids", Family.position_ids, 0.02),
    "additional features (DeepStack)": ("qwen3_vl", "decoder_arguments", Family.decoder_arguments, 0.02),
    "an image block that sees itself": ("gemma3", "block_ids", Family.block_ids, 0.02),
    "a bidirectional prompt": ("paligemma", "block_ids", Family.block_ids, 0.02),
}
"""Family, where its rule is, what most families do there, how large the gap becomes at least (nats)."""


def write_world(folder: Path, name: str, **images: int) -> Path:
    """``folder/model`` and ``folder/data``, whose pictures have several shapes."""
    world = make_world(name)
    for part in (world.model, world.processor):
        part.save_pretrained(folder / "model")
    write_risc(folder / "data", **images)
    files = sorted((folder / "data" / "resized").iterdir())
    for file, picture in zip(files, pictures(name, len(files)), strict=True):
        picture.save(file)
    return folder
