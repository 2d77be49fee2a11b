"""Captions in the words that people use for these images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

WORD = re.compile(r"\w+(?:['-]\w+)*")


class VocabularyReward:
    """Share of a caption's words that the training references use, 0 to 1.

    Reinforcement learning lets a policy drift into words that score by accident; this reward pulls it back to
    the vocabulary of the field. It says nothing about whether a caption is true, and "a a a" is in every
    vocabulary: give it a small weight beside a reward that looks at the image's references.

    Args:
        min_images: how many images a word must describe to count as one of the field; 1 counts every typing
            error.
        also: words that count although no reference has them.

    Raises:
        ValueError: when ``min_images`` is below 1.
    """

    def __init__(self, min_images: int = 2, also: Sequence[str] = ()):
        if min_images < 1:
            raise ValueError(f"min_images must be at least 1, got {min_images}")
        self.min_images = min_images
        self.also = frozenset(word.lower() for word in also)
        self.words: frozenset[str] | None = None

    def setup(self, dataset: Any) -> None:
        """Count in how many images' references each word stands.

        Args:
            dataset: ``dataset["references"]`` is a list of human captions for every training image.
        """
        images = Counter(
            word for references in dataset["references"] for word in set(words(" ".join(references)))
        )
        known = (word for word, count in images.items() if count >= self.min_images)
        self.words = frozenset(known) | self.also

    def __call__(
        self, completions: Sequence[str], log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """The reward of every caption; None ("no opinion") of one without words.

        Raises:
            RuntimeError: when called before ``setup``.
        """
        if self.words is None:
            raise RuntimeError("call setup(dataset) with the training references first")
        captions = [words(text) for text in completions]
        if log_metric is not None:
            strange = {word for caption in captions for word in caption} - self.words
            log_metric("words_outside_vocabulary", len(strange))
        return [
            sum(word in self.words for word in caption) / len(caption) if caption else None
            for caption in captions
        ]


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())
