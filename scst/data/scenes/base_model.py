"""Builds the embedded base model: a 1.9 M-parameter PaliGemma that knows the embedded scenes.

    python -m scst.data.scenes.base_model --output DIR

trains it from nothing, on scenes that no split contains, in two stages:

1. the SigLIP tower (patch 8 at 64 px: 64 image tokens) learns to name the facts of a scene (kind, count,
   colour, shape, companion, arrangement) through linear heads that are thrown away;
2. tower frozen, projector and Gemma decoder learn three prompts: ``caption en`` (the plain register of
   :func:`scst.data.scenes.dataset.plain_caption`), ``scene en`` (the kind) and ``text en`` (a human caption
   of *another* scene of that kind: what annotators say of an airport in general, not what this one shows).

What is left for fine-tuning is to describe a picture in the annotators' words. Captions are trained with
``token_type_ids`` 1 (the prompt is bidirectional, the caption causal), labels -100 on the prompt, and a
final ``<eos>``. Weights are float32 while training, stored as float16; the configuration asks for
float32 on loading.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GemmaConfig,
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from scst.data.scenes.dataset import (
    PRETRAIN_SEEDS,
    SCENE_KINDS,
    Scene,
    human_captions,
    plain_caption,
    render_scene,
)

SIDE, PATCH = 64, 8
BASE_VOCABULARY = 1000  # before PaliGemma's 1,024 location and 128 segmentation tokens
CAPTION_PROMPT, SCENE_PROMPT, TEXT_PROMPT = "caption en", "scene en", "text en"
PROMPT_SHARES = {CAPTION_PROMPT: 0.75, SCENE_PROMPT: 0.08, TEXT_PROMPT: 0.17}
FACTS = ("kind", "count", "colour", "shape", "companion", "arrangement")
BATCH = 64


def build_tokenizer(texts: list[str]) -> GemmaTokenizer:
    """A Gemma tokenizer whose merges are learned from texts: BPE inside words, byte fallback for all else."""
    specials = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\n",
    ]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCABULARY, special_tokens=specials, show_progress=False)
    bpe.train_from_iterator([*texts, *(" " + text for text in texts)], trainer=trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in learned["merges"]]
    return GemmaTokenizer(vocab=learned["vocab"], merges=merges)


def build_processor(texts: list[str]) -> PaliGemmaProcessor:
    """A PaliGemma processor for 64 x 64 pictures (PIL-backed) with a tokenizer learned from texts."""
    half = [0.5, 0.5, 0.5]
    pictures: Any = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    )
    pictures.image_seq_length = (SIDE // PATCH) ** 2
    return PaliGemmaProcessor(image_processor=pictures, tokenizer=build_tokenizer(texts))


def build_model(processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """An untrained PaliGemma; every width is a multiple of 64, the block size of NF4."""
    vocabulary = len(processor.tokenizer)
    special: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    siglip: Any = SiglipVisionConfig
    vision = siglip(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
        projection_dim=128,  # PaliGemma reads it here; SigLIP does not declare it
    )
    text = GemmaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        **special,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=128,
        hidden_size=128,
        vocab_size=vocabulary,
        image_token_index=processor.image_token_id,
        **special,
    )
    model = PaliGemmaForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, max_new_tokens=32, **special)
    return model


class Scenes:
    """Pretraining scenes: pictures ``(N, 3, 64, 64)`` in bytes, facts ``(N, 6)``, and their texts."""

    def __init__(self, seeds: range) -> None:
        scenes = [render_scene(seed, SIDE) for seed in track(seeds, description="rendering scenes")]
        pixels = np.stack([np.asarray(scene.image) for scene in scenes])
        self.pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.plain = [plain_caption(scene, scene.seed) for scene in scenes]
        self.human = [human_captions(scene, scene.seed) for scene in scenes]
        self.kinds = [scene.kind for scene in scenes]
        self.facts, self.fact_sizes = fact_labels(scenes)
        self.rows_of_kind = {kind: [r for r, k in enumerate(self.kinds) if k == kind] for kind in SCENE_KINDS}

    def texts(self) -> list[str]:
        """Everything that is written about the scenes."""
        return [
            *self.plain,
            *(caption for captions in self.human for caption in captions),
            *SCENE_KINDS,
            *PROMPT_SHARES,
        ]

    def batch_pictures(self, rows: Tensor) -> Tensor:
        """Pixel values ``(B, 3, 64, 64)`` of rows, turned at random: no fact depends on the orientation."""
        pictures = self.pictures[rows]
        if torch.rand(()) < 0.5:
            pictures = pictures.flip(-1)
        turned = torch.rot90(pictures, int(torch.randint(4, ())), (-2, -1))
        return turned.float() / 127.5 - 1.0


def fact_labels(scenes: list[Scene]) -> tuple[Tensor, list[int]]:
    """Facts as class numbers ``(N, 6)`` and the number of classes of each fact."""
    columns, sizes = [], []
    for fact in FACTS:
        values = [getattr(scene, fact) for scene in scenes]
        classes = {value: index for index, value in enumerate(sorted(set(values)))}
        columns.append(torch.tensor([classes[value] for value in values]))
        sizes.append(len(classes))
    return torch.stack(columns, dim=1), sizes


def optimise(
    parameters: list[nn.Parameter], losses: Iterator[Tensor], steps: int, lr: float, label: str
) -> None:
    """AdamW with a tenth of warm-up and a linear descent over a stream of losses."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * max(0.02, 1 - step / steps)
    )
    recent = []
    for step in track(range(steps), description=label):
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            print(f"{label}: step {step + 1}, loss {np.mean(recent[-100:]):.3f}", flush=True)


def half_precision() -> torch.autocast:
    """Matrix products in bfloat16 (twice as fast on recent CPUs); the weights stay in float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def train_tower(
    model: PaliGemmaForConditionalGeneration, scenes: Scenes, steps: int, lr: float = 1e-3
) -> None:
    """Teach the SigLIP tower the facts of scenes through one linear head per fact on its mean token."""
    tower = model.model.vision_tower
    heads = nn.Linear(tower.config.hidden_size, sum(scenes.fact_sizes))

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.randint(len(scenes.facts), (BATCH,))
            with half_precision():
                pooled = tower(scenes.batch_pictures(rows)).last_hidden_state.mean(dim=1)
            logits = heads(pooled.float()).split(scenes.fact_sizes, dim=-1)
            each = [F.cross_entropy(one, scenes.facts[rows, fact]) for fact, one in enumerate(logits)]
            yield torch.stack(each).sum()

    optimise([*tower.parameters(), *heads.parameters()], losses(), steps, lr, "tower")


def train_decoder(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    scenes: Scenes,
    steps: int,
    lr: float = 2e-3,
) -> None:
    """Teach projector and decoder the three prompts; the tower stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    rng = random.Random(0)

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.randint(len(scenes.facts), (BATCH,))
            tokens = collate([encode(processor, *draw_task(scenes, row, rng)) for row in rows.tolist()])
            targets = tokens.pop("labels")[:, 1:]
            scored = targets != -100
            with half_precision():
                pictures = scenes.batch_pictures(rows)
                hidden = model.model(pixel_values=pictures, **tokens, use_cache=False).last_hidden_state[
                    :, :-1
                ]
                logits = model.lm_head(hidden[scored])
            yield F.cross_entropy(logits.float(), targets[scored])

    optimise([p for p in model.parameters() if p.requires_grad], losses(), steps, lr, "decoder")


def draw_task(scenes: Scenes, row: int, rng: random.Random) -> tuple[str, str]:
    """A prompt, drawn by its share, and the text that answers it for the scene of a row."""
    prompt = rng.choices(list(PROMPT_SHARES), list(PROMPT_SHARES.values()))[0]
    if prompt == CAPTION_PROMPT:
        return prompt, scenes.plain[row]
    if prompt == SCENE_PROMPT:
        return prompt, scenes.kinds[row]
    other = rng.choice(scenes.rows_of_kind[scenes.kinds[row]])
    return prompt, rng.choice(scenes.human[other])


def encode(processor: PaliGemmaProcessor, prompt: str, caption: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt (image tokens first) and of a caption (with ``<eos>``)."""
    tokenizer = processor.tokenizer
    image = [processor.image_token_id] * processor.image_seq_length
    head = tokenizer(f"{tokenizer.bos_token}{prompt}\n", add_special_tokens=False).input_ids
    return image + head, [*tokenizer(caption, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def collate(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Right-padded inputs and labels, all ``(B, P + T)``; ``token_type_ids`` are 1 on captions."""
    fields = {
        "input_ids": [prompt + caption for prompt, caption in rows],
        "attention_mask": [[1] * len(prompt + caption) for prompt, caption in rows],
        "token_type_ids": [[0] * len(prompt) + [1] * len(caption) for prompt, caption in rows],
        "labels": [[-100] * len(prompt) + caption for prompt, caption in rows],
    }
    padding = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 1, "labels": -100}
    return {
        name: pad_sequence(
            [torch.tensor(row) for row in column], batch_first=True, padding_value=padding[name]
        )
        for name, column in fields.items()
    }


def save(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, folder: Path) -> None:
    """Write float16 weights, a configuration that loads them as float32, and the processor."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.save_pretrained(folder)


def build(folder: Path, steps: int = 1400, scenes: int = 8000, seed: int = 0) -> None:
    """Train the embedded model and save it.

    Args:
        folder: where model and processor go.
        steps: optimiser steps of the tower; the decoder is trained for half as many.
        scenes: number of pretraining scenes.
        seed: decides initialisation and the order of training; the scenes are always the same.
    """
    torch.manual_seed(seed)
    world = Scenes(PRETRAIN_SEEDS[:scenes])
    processor = build_processor(world.texts())
    model = build_model(processor)
    train_tower(model, world, steps)
    train_decoder(model, processor, world, max(1, steps // 2))
    save(model, processor, folder)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="python -m scst.data.scenes.base_model", description="build the embedded model"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for model and processor")
    parser.add_argument(
        "--steps", type=int, default=1400, help="steps of the tower; the decoder has half as many"
    )
    parser.add_argument("--scenes", type=int, default=8000, help="number of pretraining scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build(options.output, options.steps, options.scenes, options.seed)


if __name__ == "__main__":
    main()
