"""A penalty for captions that were not finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.text import caption_texts, has_bad_ending


class BadEndingPenalty:
    """-1 for a caption that stops on an article, preposition, conjunction ..., else 0.

    CIDEr without an end-of-sequence word pays for such captions; the words are listed in
    ``rewards.scorers.text.BAD_ENDINGS``. A caption without a word has no ending: 0.
    """

    __name__ = "bad_ending"

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """-1 or 0 for every completion."""
        return [-float(has_bad_ending(caption)) for caption in caption_texts(completions)]
