"""Rendered scenes with one object at a known place, and what is asked of maps of them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from scst.data.scenes.canvas import CONCRETE, GRASS, PAINT, WATER, Canvas
from scst.data.scenes.painters import court_lines, plane
from scst.explain.attribution_target import AttributionTarget
from scst.explain.segments import Occluder, cut_into_segments, hidden_picture

PROMPT, LIMIT = "caption en", 40


PLACES = ((17, 17), (47, 17), (17, 47), (47, 47), (32, 32))


def tank(c: Canvas, x: float, y: float) -> None:
    c.disc(x, y, 9, PAINT["gray"])
    c.disc(x, y, 7.8, PAINT["white"])


def court(c: Canvas, x: float, y: float) -> None:
    c.rect((x - 8, y - 13, x + 8, y + 13), (96, 120, 92))
    court_lines(c, (x - 6, y - 10.5, x + 6, y + 10.5), PAINT["blue"])


def house(c: Canvas, x: float, y: float) -> None:
    c.house((x - 9, y - 6.5, x + 9, y + 6.5), PAINT["red"])
    c.house((x - 3, y, x + 5, y + 9), PAINT["red"])


def pond(c: Canvas, x: float, y: float) -> None:
    c.disc(x, y, 10, WATER["blue"])


def jet(c: Canvas, x: float, y: float) -> None:
    c.rect((x - 14, y - 14, x + 14, y + 14), CONCRETE)
    plane(c, x, y, 8.5)


@dataclass(frozen=True)
class OneObject:
    """A picture of grass with one object, and where that is: (H, W) bool."""

    image: Image.Image
    mask: np.ndarray


def one_object(painter, x: float, y: float, seed: int = 0) -> OneObject:
    """An object of :mod:`scst.data.scenes.dataset` alone on noisy grass, 64 x 64 pixels."""
    canvas = Canvas(random.Random(seed), GRASS, 3)
    grass = np.asarray(canvas.image)
    painter(canvas, x, y)
    touched = (np.asarray(canvas.image) != grass).any(-1).astype(np.uint8) * 255
    noise = np.random.default_rng(seed).standard_normal((64, 64, 1)) * 4
    pixels = (np.asarray(canvas.image.reduce(3)) + noise).clip(0, 255).astype(np.uint8)
    return OneObject(Image.fromarray(pixels), np.asarray(Image.fromarray(touched).reduce(3)) > 127)


PAINTERS = (tank, court, house, pond, jet)


def share_on(mask: np.ndarray, heat: np.ndarray) -> float:
    """Share of a map's positive mass that lies on the object."""
    positive = np.clip(heat, 0, None)
    return float(positive[mask].sum() / max(positive.sum(), 1e-300))


def with_random_weights(model):
    """A copy of the same architecture that knows nothing."""
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    for parameter in twin.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.05)
    return twin


def target_of(model, processor, image, caption) -> AttributionTarget:
    return AttributionTarget(model, processor, image, PROMPT, caption, max_new_tokens=LIMIT)


def occluder_of(target: AttributionTarget, occlusion: str = "blur", num_segments: int = 40) -> Occluder:
    picture = target.picture()
    hidden = torch.from_numpy(np.ascontiguousarray(hidden_picture(picture, occlusion))).permute(2, 0, 1)[None]
    segments = cut_into_segments(picture, num_segments)
    return Occluder(target.pixels, target.to_pixels(hidden.to(target.pixels)), segments)


class ToyTarget:
    """A target whose log probabilities are known functions of which quarter of the picture is seen.

    Args:
        logprobs: of (N, 4) brightnesses of the quarters, returns (N, 1 + W).
    """

    num_targets, grid = 2, (2, 2)

    def __init__(self, logprobs):
        self.pixels = torch.ones(1, 3, 4, 4)
        self.image_map = nn.Identity()
        self._logprobs = logprobs

    def logprobs(self, pixels: torch.Tensor) -> torch.Tensor:
        quarters = nn.functional.avg_pool2d(pixels, 2)  # (N, 3, 2, 2)
        return self._logprobs(self.image_map(quarters).mean(1).flatten(1))

    def num_tokens(self, which: int) -> int:
        return 1


QUARTERS = np.kron([[0, 1], [2, 3]], np.ones((2, 2), dtype=int))


def toy_occluder(target):
    from scst.explain.segments import Occluder

    return Occluder(target.pixels, torch.zeros_like(target.pixels), QUARTERS)
