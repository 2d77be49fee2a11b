"""Trains a tiny base model of another family on rendered scenes, as the embedded PaliGemma was.

    make tiny FAMILY=qwen3_vl
    python -m scst.data.scenes.family_model --family qwen3_vl --output DIR

Scenes are those of :mod:`scst.data.scenes.base_model`, which no split contains. First the vision tower and
the projector learn to name a scene's facts from its image features; then the decoder learns the plain
register of captions, and what annotators say of *another* scene of that kind. What is left for fine-tuning is
to describe a picture in the annotators' words.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from scst.data.scenes import tiny_families
from scst.data.scenes.base_model import (
    CAPTION_PROMPT,
    TEXT_PROMPT,
    Scenes,
    optimise,
)
from scst.data.scenes.dataset import PRETRAIN_SEEDS
from scst.models import masks
from scst.models.policy import Policy, policy_for
from scst.models.prompts import PromptEncoder
from scst.types import PromptBatch

SHAPE = tiny_families.Shape(
    width=128, layers=4, vision_layers=3, side=64, patch=8, vocabulary=1000, window=32
)
PROMPTS = (CAPTION_PROMPT, TEXT_PROMPT)
CAPTION_SHARE = 0.8
"""Of the captions that the decoder learns; the others answer :data:`TEXT_PROMPT`."""
BATCH = 32
MAX_TOKENS = 40


class EncodedScenes:
    """Prompts of all scenes, encoded once: they differ in the picture only.

    Args:
        scenes: pictures, facts and texts.
        encoder: of a family's prompts.
    """

    def __init__(self, scenes: Scenes, encoder: PromptEncoder):
        self.scenes, self.encoder = scenes, encoder
        pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in scenes.pictures]
        self.both = encoder.prompt_batch([pictures[0]] * len(PROMPTS), PROMPTS)
        self.vision = [
            encoder.prompt_batch([picture], [PROMPTS[0]]).vision[0]
            for picture in track(pictures, description="encoding pictures")
        ]

    def prompts(self, rows: Sequence[int], which: Sequence[int]) -> PromptBatch:
        """The prompts of scenes; ``which`` numbers the instruction of each."""
        chosen = self.both.select(torch.tensor(which))
        return replace(chosen, vision=[self.vision[row] for row in rows])


def build_model(name: str, processor: Any) -> Any:
    """An untrained model of a family."""
    config = tiny_families.build_config(name, processor, SHAPE)
    model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    matrix = getattr(getattr(model.model, "multi_modal_projector", None), "mm_input_projection_weight", None)
    if matrix is not None:  # Gemma 3 leaves it at zero
        nn.init.normal_(matrix, std=0.05)
    return model.train()


def train_vision(policy: Policy, data: EncodedScenes, steps: int, lr: float = 1e-3) -> None:
    """Teach tower and projector the facts of scenes, through linear heads on the mean image feature."""
    scenes, width = data.scenes, policy.text_config.hidden_size
    heads = nn.Linear(width, sum(scenes.fact_sizes))
    parts = policy.family.vision_parts(policy.inner)
    weights = list(dict.fromkeys(parameter for part in parts for parameter in part.parameters()))

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.randint(len(scenes.facts), (BATCH,))
            features = policy.image_features(data.prompts(rows.tolist(), [0] * BATCH))
            pooled = torch.stack([levels[0].float().mean(0) for levels in features])
            logits = heads(pooled).split(scenes.fact_sizes, dim=-1)
            each = [functional.cross_entropy(one, scenes.facts[rows, i]) for i, one in enumerate(logits)]
            yield torch.stack(each).sum()

    optimise([*weights, *heads.parameters()], losses(), steps, lr, "vision")


def train_decoder(policy: Policy, data: EncodedScenes, steps: int, lr: float = 2e-3) -> None:
    """Teach the decoder what stands in captions; the vision tower stays as it is."""
    for parameter in policy.family.vision_parts(policy.inner)[0].parameters():
        parameter.requires_grad_(False)
    rng, scenes = random.Random(0), data.scenes

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.randint(len(scenes.facts), (BATCH,)).tolist()
            which = [int(rng.random() >= CAPTION_SHARE) for _ in rows]
            captions = [_caption(scenes, row, task, rng) for row, task in zip(rows, which, strict=True)]
            yield _cross_entropy(policy, data, data.prompts(rows, which), captions)

    optimise([p for p in policy.inner.parameters() if p.requires_grad], losses(), steps, lr, "decoder")


def _caption(scenes: Scenes, row: int, task: int, rng: random.Random) -> str:
    if task == 0:
        return scenes.plain[row]
    return rng.choice(scenes.human[rng.choice(scenes.rows_of_kind[scenes.kinds[row]])])


def _cross_entropy(
    policy: Policy, data: EncodedScenes, prompts: PromptBatch, captions: Sequence[str]
) -> Tensor:
    rows = [torch.tensor(data.encoder.caption_token_ids(caption, MAX_TOKENS)) for caption in captions]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=policy.pad_token_id)
    real = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    distances = torch.arange(1, ids.shape[1]).expand(len(ids), -1)
    inputs = policy.from_prompts(
        prompts,
        policy.image_features(prompts),
        masks.suffix_mask(prompts, real[:, :-1]),
        ids[:, :-1],
        distances,
    )
    states = policy.hidden_states(inputs)[:, prompts.input_ids.shape[1] - 1 :]
    return functional.cross_entropy(policy.logits(states[real]).float(), ids[real])


def build(
    name: str, folder: Path, steps: int = 800, decoder_steps: int = 800, scenes: int = 6000, seed: int = 0
) -> None:
    """Train a model of a family and save it.

    Args:
        name: ``model_type`` of the family.
        folder: where model and processor go.
        steps: optimiser steps of the vision tower.
        decoder_steps: of the decoder.
        scenes: number of pretraining scenes.
        seed: decides initialisation and the order of training; the scenes are always the same.
    """
    torch.manual_seed(seed)
    world = Scenes(PRETRAIN_SEEDS[:scenes])
    processor = tiny_families.build_processor(name, world.texts(), SHAPE)
    model = build_model(name, processor)
    encoder = PromptEncoder.of(processor)
    policy, data = policy_for(model, encoder), EncodedScenes(world, encoder)
    train_vision(policy, data, steps)
    train_decoder(policy, data, decoder_steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="python -m scst.data.scenes.family_model", description="build a tiny model of a family"
    )
    parser.add_argument("--family", required=True, choices=tiny_families.FAMILIES)
    parser.add_argument("--output", type=Path, required=True, help="folder for model and processor")
    parser.add_argument("--steps", type=int, default=800, help="steps of the vision tower")
    parser.add_argument("--decoder_steps", type=int, default=800)
    parser.add_argument("--scenes", type=int, default=6000, help="number of pretraining scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build(options.family, options.output, options.steps, options.decoder_steps, options.scenes, options.seed)


if __name__ == "__main__":
    main()
