"""Small rewards that need no references: length, repetition, unfinished captions. All are 0 at best.

They are meant beside a reward that knows what is in the image: optimised alone, each is satisfied by the same
sentence for every image. Words are those of :func:`rewards.scorers.text.words`, as in the logged text statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.errors import RewardError
from rewards.scorers.text import caption_texts, has_bad_ending, repeated_share, words


class LengthReward:
    """Minus how far a caption is from a wanted length, in parts of it: -1 to 0.

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


class RepetitionPenalty:
    """Minus the share of words that repeat what the caption has said: -1 to 0 (:func:`repeated_share`)."""

    __name__ = "repetition"

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """-1 to 0 for every completion."""
        return [-repeated_share(caption) for caption in caption_texts(completions)]


class BadEndingPenalty:
    """-1 for a caption that stops on an article, preposition, conjunction ..., else 0.

    Such captions are what CIDEr without an end-of-sequence word pays for; see ``rewards.scorers.text.BAD_ENDINGS``. A
    caption without a word has no ending: 0.
    """

    __name__ = "bad_ending"

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """-1 or 0 for every completion."""
        return [-float(has_bad_ending(caption)) for caption in caption_texts(completions)]
