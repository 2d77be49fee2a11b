"""The facts of the embedded world: what a scene is, and which values its kind may take."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from scst.data.scenes.canvas import GRASS, SAND, Colour


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
