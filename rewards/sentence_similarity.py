"""Cosine of sentence embeddings between a caption and its references, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scorers.sentence_similarity import SentenceSimilarity
from rewards.scorers.text import caption_texts


class SentenceSimilarityReward:
    """Sentence similarity as a reward function.

    Args:
        model_name_or_path, aggregate, device, batch_size: as of :class:`SentenceSimilarity`.

    Raises:
        RewardError: an argument is wrong, there can be no such model, or sentence-transformers is missing.
    """

    __name__ = "sentence_similarity"  # TRL names a reward by it

    def __init__(
        self,
        model_name_or_path: str | None = None,
        aggregate: str = "max",
        device: str | None = None,
        batch_size: int = 64,
    ):
        self.scorer = SentenceSimilarity(
            model_name_or_path, aggregate=aggregate, device=device, batch_size=batch_size
        )

    def setup(self, dataset: Any) -> None:
        """Load the model, so that a broken one stops the run before it trains."""
        _ = self.scorer.encoder

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """Similarity of every completion to its image's references."""
        return self.scorer.scores(caption_texts(completions), references)
