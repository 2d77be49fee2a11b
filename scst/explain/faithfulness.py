"""How far a map can be trusted: what happens when the regions it names are hidden, or shown alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scst.explain.attribution_target import AttributionTarget
from scst.explain.segments import Occluder


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421, section 4.2).

    Attributes:
        shares: (F,) share of the picture's area that is deleted or inserted, 0 to 1.
        deletion: (F,) probability per token while the most important segments are hidden first.
        insertion: (F,) probability per token while they are shown first.
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve, 0 to 1: low is good."""
        return float(np.trapezoid(self.deletion, self.shares))

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve, 0 to 1: high is good."""
        return float(np.trapezoid(self.insertion, self.shares))

    @property
    def faithfulness(self) -> float:
        """Insertion minus deletion area, -1 to 1. A random order has 0 on average, whatever the model."""
        return self.insertion_area - self.deletion_area


def faithfulness_curve(
    target: AttributionTarget,
    occluder: Occluder,
    which: int,
    importance: np.ndarray,
    *,
    steps: int,
    batch_size: int,
) -> FaithfulnessCurve:
    """Hide and show segments in the order of their importance.

    The probability is the geometric mean over the target's tokens, so that long captions can be compared
    with words.

    Args:
        target: a caption.
        occluder: the picture with its S segments.
        which: 0 for the whole caption, 1 ... W for a word.
        importance: (S,) higher is hidden or shown earlier.
        steps: points of each curve after the first.
        batch_size: pictures at a time.
    """
    order = np.argsort(-importance, kind="stable")
    counts = np.unique(np.linspace(0, len(order), steps + 1).round().astype(int))
    inserted = np.zeros((len(counts), len(order)), dtype=np.float32)
    for row, count in zip(inserted, counts, strict=True):
        row[order[:count]] = 1
    present = torch.from_numpy(np.concatenate([1 - inserted, inserted]))
    with torch.no_grad():
        batches = present.split(batch_size)
        logprobs = torch.cat([target.logprobs(occluder.show(batch))[:, which] for batch in batches])
    chances = (logprobs / target.num_tokens(which)).exp().double().cpu().numpy()
    sizes = np.bincount(occluder.segments.flatten().cpu().numpy())
    shares = inserted @ sizes / sizes.sum()
    return FaithfulnessCurve(shares, chances[: len(counts)], chances[len(counts) :])
