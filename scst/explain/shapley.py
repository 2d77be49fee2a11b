"""Shapley values of image segments for a caption's words, with captum."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import ShapleyValueSampling

from scst.explain.attribution_target import AttributionTarget
from scst.explain.segments import Occluder


def segment_shapley_values(
    target: AttributionTarget,
    occluder: Occluder,
    *,
    permutations: int,
    batch_size: int,
    seed: int = 0,
) -> np.ndarray:
    """Shapley values of segments, estimated from random orders.

    PixelSHAP's idea (Goldshmidt 2025, arXiv:2503.06670) of regions as players, with the permutation estimator
    of Castro et al. 2009 (doi:10.1016/j.cor.2008.04.004).

    Segments are shown one after the other in random order; a segment's value is the mean change of the log
    probability at the moment it appears. One forward pass answers for all words at once, so all words cost
    as much as one. The values of a target sum to the log probability at the picture minus that with
    everything hidden, whatever the number of orders.

    Args:
        target: a caption with W words.
        occluder: the picture with its S segments.
        permutations: random orders; each takes S forward passes.
        batch_size: pictures at a time.
        seed: of the orders.

    Returns:
        (1 + W, S): of the whole caption, then of each word.
    """
    count = occluder.num_segments
    everything = torch.ones(1, count, device=target.pixels.device)

    def logprobs(present: torch.Tensor) -> torch.Tensor:
        return target.logprobs(occluder.show(present))  # (N, 1 + W)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        values = ShapleyValueSampling(logprobs).attribute(
            everything,
            baselines=0.0,
            n_samples=permutations,
            perturbations_per_eval=min(batch_size, count),
        )
    return values.reshape(target.num_targets, count).double().cpu().numpy()
