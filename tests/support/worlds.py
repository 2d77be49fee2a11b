"""A small world on disk for end-to-end tests: a tiny random model, its processor and a dataset folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

SMALL = {"width": 64, "layers": 1}


def write_model(folder: Path, *, version: int = 1, seed: int = 0) -> Path:
    """A saved random PaliGemma with its processor."""
    from tests.support.tiny import build_model, build_processor

    processor = build_processor()
    build_model(processor, version=version, seed=seed, **SMALL).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_risc(folder: Path, *, train: int = 12, val: int = 4, size: int = 32) -> Path:
    """A RISC folder of noise images, five captions each."""
    from tests.support.tiny import SENTENCES, noise_images

    (folder / "resized").mkdir(parents=True)
    rows = []
    for i, image in enumerate(noise_images(train + val, size)):
        image.save(folder / "resized" / f"tile_{i}.png")
        captions = [SENTENCES[(i + k) % len(SENTENCES)] + " ." for k in range(5)]
        rows.append(["noise", "train" if i < train else "val", f"tile_{i}.png", *captions])
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "split", "image", *(f"caption_{k}" for k in range(1, 6))])
        writer.writerows(rows)
    return folder


def tiny_run(world: Path, **keys: Any) -> dict[str, Any]:
    """The keys of a short run on the model and data in a folder, in float32 and without checkpoints."""
    return {
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "max_new_tokens": 8,
        "precision": "fp32",
        "quantization": "none",
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
    } | keys


def write_recipe(path: Path, **keys) -> Path:
    """A recipe file."""
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path
