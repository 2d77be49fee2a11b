"""Maps laid over their picture."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

LONGEST_SIDE = 448  # pixels of an overlay
FOR, AGAINST, OUTLINE = (255, 96, 0), (0, 96, 255), 255


def overlay(
    image: Image.Image,
    heat: np.ndarray,
    region: np.ndarray | None = None,
    *,
    smooth: float = 0.0,
    side: int = LONGEST_SIDE,
) -> Image.Image:
    """A picture with its map: orange speaks for the words, blue against them, a line runs round the region.

    Args:
        image: the picture in any size; the map is stretched over it.
        heat: (H, W), signed or not; colours are relative to its 99th percentile.
        region: (H, W) bool.
        smooth: standard deviation of a blur of the map, as a share of its side, for display only.
        side: pixels of the overlay's longer side.
    """
    picture = np.asarray(_in_display_size(image, side).convert("RGB"), dtype=np.float32)
    size = picture.shape[1::-1]
    grey = picture.mean(-1, keepdims=True)
    base = 0.45 * picture + 0.55 * grey  # colours of the picture must not be taken for those of the map
    strength = _stretched(_normalised(gaussian_filter(heat, smooth * max(heat.shape))), size)
    alpha = 0.8 * np.abs(strength)[..., None]
    colours = np.where(strength[..., None] > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    pixels = (1 - alpha) * base + alpha * colours
    if region is not None and region.any():
        pixels = _outlined(pixels, region, size)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _in_display_size(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)


def _normalised(heat: np.ndarray) -> np.ndarray:
    top = np.quantile(np.abs(heat), 0.99)
    return np.clip(heat / top, -1, 1) if top > 0 else np.zeros_like(heat)


def _stretched(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _outlined(pixels: np.ndarray, region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    inside = np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))
    line = binary_dilation(inside, iterations=2) & ~inside
    shadow = binary_dilation(inside, iterations=4) & ~inside & ~line
    pixels = np.where(shadow[..., None], np.float32(0.4) * pixels, pixels)
    return np.where(line[..., None], np.float32(OUTLINE), pixels)
