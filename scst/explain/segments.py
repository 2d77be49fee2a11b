"""An image cut into segments that follow its edges, and images in which some of them are hidden."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.segmentation import slic

from scst.errors import RecipeError

OCCLUSIONS = ("blur", "mean", "gray", "black")


def cut_into_segments(picture: np.ndarray, num_segments: int) -> np.ndarray:
    """SLIC superpixels (Achanta et al. 2012, doi:10.1109/TPAMI.2012.120) of a picture.

    Args:
        picture: (H, W, 3) colours from 0 to 1.
        num_segments: about how many are wanted.

    Returns:
        (H, W) integers from 0; every number up to the largest occurs.
    """
    labels = slic(picture, n_segments=num_segments, compactness=10.0, start_label=0, channel_axis=-1)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def hidden_picture(picture: np.ndarray, occlusion: str) -> np.ndarray:
    """What is seen where something is hidden: (H, W, 3) colours from 0 to 1.

    ``blur`` (Gaussian, an eighth of the side) keeps the colours of the surroundings and removes what can be
    recognised; ``mean`` is the picture's mean colour; ``gray`` is 0.5, the zero of most models' input;
    ``black`` is 0. There is no neutral choice (Sturmfels et al. 2020, doi:10.23915/distill.00022): a red roof
    on a black picture loses less than a black one.

    Raises:
        RecipeError: on another name.
    """
    if occlusion == "blur":
        sigma = max(picture.shape[:2]) / 8
        return gaussian_filter(picture, sigma=(sigma, sigma, 0), mode="nearest")
    if occlusion not in OCCLUSIONS:
        raise RecipeError(f"occlusion: must be one of {', '.join(OCCLUSIONS)}; got {occlusion!r}")
    colour = {"mean": picture.mean((0, 1)), "gray": 0.5, "black": 0.0}[occlusion]
    return np.broadcast_to(colour, picture.shape).astype(picture.dtype)


class Occluder:
    """Pictures of which only some segments are shown.

    Args:
        pixels: (1, 3, H, W) the picture.
        hidden: (1, 3, H, W) what is shown instead.
        segments: (H, W) segment numbers.
    """

    def __init__(self, pixels: torch.Tensor, hidden: torch.Tensor, segments: np.ndarray):
        self.pixels, self.hidden = pixels, hidden
        self.segments = torch.as_tensor(segments, dtype=torch.long, device=pixels.device)
        self.num_segments = int(segments.max()) + 1

    def show(self, present: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) pictures in which segment s of picture n is seen where ``present[n, s]`` is 1."""
        seen = present.to(self.pixels)[:, self.segments].unsqueeze(1)  # (N, 1, H, W)
        return self.hidden + seen * (self.pixels - self.hidden)


def segment_means(heat: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """(S,) mean heat of every segment of a map (H, W)."""
    sums = np.bincount(segments.ravel(), weights=heat.ravel())
    return sums / np.bincount(segments.ravel())
