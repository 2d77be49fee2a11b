"""BLEU of single captions as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.errors import RewardError
from rewards.scorers.bleu import MAX_ORDER, bleu_statistics, corpus_bleu_from_sums
from rewards.scorers.text import caption_texts
from rewards.scorers.tokenizer import tokenize


class BleuReward:
    """BLEU of single captions as a reward function, 0 to 1.

    Args:
        order: longest n-grams, 1 to 4.
        smooth: see the module; False is pycocoevalcap's value, the BLEU-4 reward of Rennie et al. 2017
            (arXiv:1612.00563).

    Raises:
        RewardError: another order.
    """

    __name__ = "bleu"  # TRL names a reward by it

    def __init__(self, order: int = MAX_ORDER, smooth: bool = False):
        if order not in range(1, MAX_ORDER + 1):
            raise RewardError(f"bleu: order must be 1 to {MAX_ORDER}, got {order!r}")
        self.order, self.smooth = int(order), smooth

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """BLEU of every completion; an empty one scores 0."""
        candidates = [" ".join(tokenize(caption)) for caption in caption_texts(completions)]
        groups = [[" ".join(tokenize(text)) for text in group] for group in references]
        statistics = bleu_statistics(candidates, groups, self.order)
        return corpus_bleu_from_sums(statistics, smooth=self.smooth).tolist()
