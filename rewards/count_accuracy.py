"""Whether a caption counts as its references do, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.scene import count_accuracy
from rewards.scorers.text import caption_texts


class CountAccuracyReward:
    """Count accuracy as a reward function, 0 to 1; None for captions that count nothing the references count.

    None adds nothing to a mixture, as a wrong count does: there is nothing to gain from saying no numbers.
    """

    __name__ = "count_accuracy"

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float | None]:
        """Accuracy of every completion."""
        return count_accuracy(caption_texts(completions), references).per_caption
