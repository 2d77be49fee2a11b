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

Pictures are painted at three times their size (:mod:`scst.data.scene_painters`), averaged down, turned
by one of the eight symmetries of the square, and given ground texture, sensor noise and a brightness of
their own. Two languages describe them (:mod:`scst.data.scene_captions`): :func:`human_captions` imitates
the annotators of RSICD (several wordings of the same facts, details that only some mention, now and then
a typo), :func:`plain_caption` is the register in which the embedded model was pretrained. Splits and
pretraining use disjoint ranges of seeds (:data:`SPLIT_SEEDS`, :data:`PRETRAIN_SEEDS`).
"""

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from scst.data.scene_canvas import GRASS, GRID, SAND, Canvas, Colour
from scst.data.scene_captions import human_captions, plain_caption
from scst.data.scene_painters import PAINTERS

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


@dataclass(frozen=True)
class Scene:
    """A picture and the facts it was painted from.

    Attributes:
        image: RGB picture.
        kind: one of :data:`SCENE_KINDS`.
        count: number of the kind's objects, at least 1.
        colour: their colour.
        shape: a kind-specific manner, or ``""``.
        companion: ``trees``, ``buildings``, ``road``, ``bareland`` or ``meadow``.
        arrangement: where the companion lies: ``beside``, ``sides`` or ``around``.
        seed: the seed it was rendered from.
    """

    image: Image.Image
    kind: str
    count: int
    colour: str
    shape: str
    companion: str
    arrangement: str
    seed: int


@dataclass(frozen=True)
class Layout:
    """The values that the facts of one scene kind may take, and the ground it stands on."""

    counts: tuple[int, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    companions: tuple[str, ...]
    arrangements: tuple[str, ...]
    ground: Colour


ALL = ("beside", "sides", "around")
TREES_AND_TOWN = ("trees", "buildings", "road", "bareland", "meadow")
ROOFS = ("red", "gray", "brown", "blue")

LAYOUTS: dict[str, Layout] = {
    "river": Layout(
        (1,),
        ("green", "brown", "blue", "black"),
        ("curved", "straight"),
        ("trees", "buildings", "bareland", "meadow"),
        ("sides",),
        GRASS,
    ),
    "bridge": Layout(
        (1, 1, 2), ("green", "blue", "brown"), ("",), ("trees", "buildings", "meadow"), ("sides",), GRASS
    ),
    "port": Layout(
        (2, 3, 4, 5, 8, 10),
        ("blue", "green", "black"),
        ("",),
        ("buildings", "road", "trees"),
        ("beside",),
        GRASS,
    ),
    "airport": Layout(
        (1, 2, 3, 4, 6, 8), ("white",), ("",), ("buildings", "meadow", "bareland"), ("beside",), GRASS
    ),
    "dense residential": Layout((40,), ROOFS, ("",), ("trees", "road"), ("around",), (146, 142, 130)),
    "house": Layout((1, 1, 2, 3), ROOFS, ("",), ("trees", "road", "bareland"), ALL, GRASS),
    "storage tank": Layout(
        (1, 2, 3, 4, 6, 9), ("white", "gray", "red"), ("",), TREES_AND_TOWN, ALL, (168, 156, 132)
    ),
    "tennis court": Layout(
        (1, 2, 3, 4, 6),
        ("green", "blue", "red"),
        ("",),
        ("trees", "buildings", "road", "meadow"),
        ALL,
        (138, 140, 132),
    ),
    "farmland": Layout(
        (2, 3, 4, 6, 9, 12),
        ("green", "yellow", "brown"),
        ("rectangular", "rectangular", "circular"),
        ("trees", "road", "buildings"),
        ("beside",),
        (170, 158, 118),
    ),
    "forest": Layout(
        (99,), ("green",), ("dense", "sparse"), ("road", "bareland", "meadow"), ("beside",), (96, 118, 70)
    ),
    "parking": Layout((12, 60), ("gray",), ("",), ("trees", "buildings", "road"), ALL, GRASS),
    "baseball field": Layout((1, 1, 2, 3, 4), ("green",), ("",), TREES_AND_TOWN, ALL, (138, 170, 106)),
    "beach": Layout(
        (1,), ("blue", "green"), ("wavy", "calm"), ("trees", "buildings", "road"), ("beside",), SAND
    ),
    "roundabout": Layout(
        (3, 4), ("green",), ("",), ("trees", "buildings", "bareland", "meadow"), ("around",), (140, 150, 112)
    ),
    "pond": Layout(
        (1,), ("blue", "green", "black"), ("",), ("trees", "buildings", "road", "bareland"), ALL, GRASS
    ),
    "industrial": Layout(
        (1, 2, 3, 4, 6), ("blue", "white", "red"), ("",), ("trees", "road", "bareland"), ALL, (160, 158, 148)
    ),
    "railway station": Layout(
        (1, 2, 3), ("white", "blue", "gray"), ("",), ("trees", "buildings", "road"), ("beside",), GRASS
    ),
    "playground": Layout(
        (1,), ("green", "yellow"), ("",), ("trees", "buildings", "road", "bareland"), ALL, GRASS
    ),
}
SCENE_KINDS: tuple[str, ...] = tuple(LAYOUTS)


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
    facts = {
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
        picture.size, Image.BICUBIC
    )
    texture = (np.asarray(patches, dtype=np.float32)[..., None] - 128.0) * 0.07
    noise = rng.standard_normal((*picture.size, 1), dtype=np.float32) * 4.0
    pixels = np.asarray(picture, dtype=np.float32)
    pixels = (pixels - 128.0) * rng.uniform(0.85, 1.1) + 128.0 + rng.uniform(-14, 14) + texture + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scene_rows(split: Literal["train", "val", "test"]) -> list[dict]:
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
