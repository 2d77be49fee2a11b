"""Integrated Gradients and Grad-CAM of a caption's words, with captum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch.nn.functional import interpolate

from scst.explain.attribution_target import AttributionTarget


def integrated_gradients(
    target: AttributionTarget,
    which: int,
    start: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
) -> tuple[np.ndarray, float, float]:
    """Integrated Gradients (Sundararajan et al. 2017, arXiv:1703.01365, eq. 1) along the line from ``start``.

    Args:
        target: whose log probability.
        which: 0 for the whole caption, 1 ... W for a word.
        start: (1, 3, H, W) where the path begins.
        steps: of the Gauss-Legendre quadrature.
        batch_size: pictures at a time.

    Returns:
        (H, W) attributions summed over channels; their sum; and what the sum should be (completeness), the
        log probability at the picture minus that at ``start``.
    """

    def logprob(pixels: torch.Tensor) -> torch.Tensor:
        return target.logprobs(pixels)[:, which]

    attributions = IntegratedGradients(logprob).attribute(
        target.pixels, baselines=start, n_steps=steps, internal_batch_size=batch_size
    )
    with torch.no_grad():
        ends = logprob(torch.cat([target.pixels, start]))
    heat = attributions[0].sum(0).double().cpu().numpy()
    return heat, float(heat.sum()), float(ends[0] - ends[1])


def grad_cam(target: AttributionTarget, which: int) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1-2) at the projected image features.

    These are the last features that still have a place in the image; further up, words and places mix.

    Returns:
        (H, W) not negative; patch resolution, enlarged bilinearly.
    """

    def logprob(pixels: torch.Tensor) -> torch.Tensor:
        return target.logprobs(pixels)[:, which]

    pixels = target.pixels.clone().requires_grad_(True)
    cam = LayerGradCam(logprob, target.image_map).attribute(pixels, relu_attributions=True)
    return enlarge(cam[0, 0].detach().double().cpu(), target.pixels.shape[-2:])


def enlarge(heat: torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """A map of patches (h, w) at the picture's size (H, W)."""
    return interpolate(heat[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()
