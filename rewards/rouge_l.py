"""ROUGE-L of single captions as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.rouge import rouge_l_scores
from rewards.scorers.text import caption_texts
from rewards.scorers.tokenizer import tokenize


class RougeLReward:
    """ROUGE-L of single captions as a reward function, 0 to 1."""

    __name__ = "rouge_l"  # TRL names a reward by it

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """ROUGE-L of every completion; an empty one scores 0."""
        candidates = [" ".join(tokenize(caption)) for caption in caption_texts(completions)]
        groups = [[" ".join(tokenize(text)) for text in group] for group in references]
        return rouge_l_scores(candidates, groups)
