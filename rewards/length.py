"""A target number of words as a reward. Optimised alone, one sentence for all images satisfies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.errors import RewardError
from rewards.scorers.text import caption_texts, words


class LengthReward:
    """Minus the distance of a caption's length from a target, relative to the target: -1 to 0.

    0 within ``target ± tolerance`` words; from there it falls by 1 / ``target`` per word, down to -1.

    Args:
        target: words, more than 0.
        tolerance: words, 0 or more.

    Raises:
        RewardError: another target or tolerance.
    """

    __name__ = "length"  # TRL names a reward by it

    def __init__(self, target: float, tolerance: float = 0.0):
        if not (math.isfinite(target) and target > 0):
            raise RewardError(f"length: target must be a number of words above 0, got {target!r}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise RewardError(f"length: tolerance must be a number of words of 0 or more, got {tolerance!r}")
        self.target, self.tolerance = float(target), float(tolerance)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """-1 to 0 for every completion."""
        return [self._value(len(words(caption))) for caption in caption_texts(completions)]

    def _value(self, length: int) -> float:
        excess = max(0.0, abs(length - self.target) - self.tolerance)
        return -min(1.0, excess / self.target)
