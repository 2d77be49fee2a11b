"""How much of what the references agree on a caption names, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.scene import entity_recall
from rewards.scorers.text import caption_texts


class EntityRecallReward:
    """Entity recall as a reward function, 0 to 1; None where the references share no entity.

    A list of nouns reaches the maximum: mix it with a reward that depends on the whole sentence, such as
    CIDEr-D.
    """

    __name__ = "entity_recall"  # TRL names a reward by it

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float | None]:
        """Recall of every completion."""
        return entity_recall(caption_texts(completions), references).per_caption
