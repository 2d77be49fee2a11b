"""The embedded world: synthetic aerial scenes with five human-like captions each, needing no download.

A scene is a 64 x 64 RGB picture of one of 18 kinds (rivers, airports, tennis courts, ...), decided by an
integer seed alone: the same seed gives the same bytes with the same Pillow. Behind the pixels stand
facts that captions speak of:

- ``kind``: what the picture is of; one of :data:`SCENE_KINDS`.
- ``count``: how many of the kind's objects (planes, tanks, courts, ...) there are.
- ``colour``: the colour of these objects (roofs, water, courts, ...).
- ``shape``: a kind-specific manner (a curved river, circular farmland, a wavy sea).
- ``companion``: what lies beside (trees, buildings, a road, bareland, meadow).
- ``arrangement``: on one side of it, on two sides, or all around.

Pictures are painted at three times their size (:mod:`scst.data.scenes.painters`), averaged down, turned
by one of the eight symmetries of the square, and given ground texture, sensor noise and a brightness of
their own. Two languages describe them (:mod:`scst.data.scenes.scene_captions`): :func:`human_captions`
imitates the annotators of RSICD (several wordings of the same facts, details that only some mention, now
and then a typo), :func:`plain_caption` is the register in which the embedded model was pretrained. Splits and
pretraining use disjoint ranges of seeds (:data:`SPLIT_SEEDS`, :data:`PRETRAIN_SEEDS`).
"""

import random
from typing import Any

import numpy as np
from PIL import Image

from scst.data.scenes.canvas import GRID, Canvas
from scst.data.scenes.painters import PAINTERS
from scst.data.scenes.scene_captions import human_captions, plain_caption
from scst.data.scenes.scene_facts import LAYOUTS, SCENE_KINDS, Scene

__all__ = [
    "PRETRAIN_SEEDS",
    "SCENE_KINDS",
    "SPLIT_SEEDS",
    "Scene",
    "human_captions",
    "plain_caption",
    "render_scene",
    "scene_rows",
]

SPLIT_SEEDS: dict[str, range] = {
    "train": range(1_000_000, 1_001_500),
    "val": range(2_000_000, 2_000_200),
    "test": range(3_000_000, 3_000_300),
}
PRETRAIN_SEEDS = range(10_000_000, 11_000_000)

OVERSAMPLING = 3
TURNS = (None, *Image.Transpose)


def render_scene(seed: int, size: int = 64) -> Scene:
    """Paint the scene of a seed.

    Args:
        seed: decides every fact and every pixel.
        size: side of the square picture in pixels, at least 16.

    Raises:
        ValueError: if ``size`` is below 16.
    """
    if size < 16:
        raise ValueError(f"a scene needs a size of at least 16 pixels, got size={size}")
    rng = random.Random(seed)
    kind = rng.choice(SCENE_KINDS)
    layout = LAYOUTS[kind]
    facts: dict[str, Any] = {
        "count": rng.choice(layout.counts),
        "colour": rng.choice(layout.colours),
        "shape": rng.choice(layout.shapes),
        "companion": rng.choice(layout.companions),
        "arrangement": rng.choice(layout.arrangements),
    }
    canvas = Canvas(rng, layout.ground, size * OVERSAMPLING / GRID)
    PAINTERS[kind](canvas, **facts)
    picture = canvas.image.reduce(OVERSAMPLING)
    turn = rng.choice(TURNS)
    if turn is not None:
        picture = picture.transpose(turn)
    return Scene(image=_weather(picture, seed), kind=kind, seed=seed, **facts)


def _weather(picture: Image.Image, seed: int) -> Image.Image:
    """Add ground texture, sensor noise, contrast and brightness, all decided by the seed."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    texture = (np.asarray(patches, dtype=np.float32)[..., None] - 128.0) * 0.07
    noise = rng.standard_normal((*picture.size, 1), dtype=np.float32) * 4.0
    pixels = np.asarray(picture, dtype=np.float32)
    pixels = (pixels - 128.0) * rng.uniform(0.85, 1.1) + 128.0 + rng.uniform(-14, 14) + texture + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scene_rows(split: str) -> list[dict]:
    """The rows of a split: 1,500 of train, 200 of val, 300 of test.

    Returns:
        One dict per scene: ``image`` (RGB), ``references`` (five human captions), ``image_id``
        (``"train-00017"``) and ``kind``.

    Raises:
        ValueError: if the split is unknown.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}: the embedded scenes have {', '.join(SPLIT_SEEDS)}")
    rows = []
    for index, seed in enumerate(SPLIT_SEEDS[split]):
        scene = render_scene(seed)
        rows.append(
            {
                "image": scene.image,
                "references": human_captions(scene, seed),
                "image_id": f"{split}-{index:05d}",
                "kind": scene.kind,
            }
        )
    return rows
