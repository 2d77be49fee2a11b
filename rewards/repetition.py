"""A penalty for captions that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.text import caption_texts, repeated_share


class RepetitionPenalty:
    """Minus the share of repeated words: -1 to 0 (:func:`repeated_share`)."""

    __name__ = "repetition"

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """-1 to 0 for every completion."""
        return [-repeated_share(caption) for caption in caption_texts(completions)]
