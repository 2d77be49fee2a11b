"""A tiny random model of every family, with its real processor class and its checkpoints' chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from scst.data.scenes import tiny_families
from scst.models.families.family import Family
from scst.models.policy import Policy, policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.rollout.distribution import rollout_uniforms
from scst.types import PromptBatch, Sampling
from tests.support import tiny
from tests.support.worlds import write_risc

FAMILIES = ("paligemma", "paligemma2", *tiny_families.FAMILIES)
SHAPE = tiny_families.Shape()
INSTRUCTIONS = ["describe this image", "what is in the forest near the river"]


def build_processor(name: str) -> Any:
    """The processor of a family: pictures of 32 or 64 pixels and few tokens."""
    if name.startswith("paligemma"):
        return tiny.build_processor()
    return tiny_families.build_processor(name, [*tiny.SENTENCES, *INSTRUCTIONS], SHAPE)


def build_model(name: str, processor: Any, *, kernel: str = "sdpa", seed: int = 0, **text: Any) -> Any:
    """A random model of a family whose greedy captions are not constant."""
    if name.startswith("paligemma"):
        version = 2 if name == "paligemma2" else 1
        model = tiny.build_model(processor, version=version, seed=seed, **text)
        model.set_attn_implementation("eager" if version == 2 else kernel)
        return model
    torch.manual_seed(seed)
    config = tiny_families.build_config(name, processor, SHAPE)
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
