"""How varied captions are, and how much of them is not copied from the training references.

Self-critical training makes captions more alike: CIDEr pays for the words that most references have. These
numbers show it. All count the words of :func:`rewards.scorers.text.words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewards.errors import RewardError
from rewards.scorers.text import words


def caption_ngrams(caption: str, n: int) -> list[tuple[str, ...]]:
    """All n-grams of a caption, repeated ones included, for distinct-n.

    Distinct-n is distinct n-grams over n-grams of all captions (Li et al. 2016, arXiv:1510.03055, who divide
    by the words for every n; everybody since divides by the n-grams). It falls with the amount of text:
    compare equally many captions of similar length.

    Raises:
        RewardError: n below 1.
    """
    if n < 1:
        raise RewardError(f"distinct-n counts n-grams of 1 or more words, got n={n!r}")
    own = words(caption)
    return [own[i : i + n] for i in range(len(own) - n + 1)]


@dataclass(frozen=True)
class TrainingText:
    """The training captions, which a captioner may have memorised.

    Attributes:
        words: all words of the training references.
        captions: all training references, each as its words.
    """

    words: frozenset[str] = field(repr=False)
    captions: frozenset[tuple[str, ...]] = field(repr=False)

    @classmethod
    def from_captions(cls, captions: Iterable[str]) -> TrainingText:
        """Collect the training references of all images.

        Raises:
            RewardError: there are none.
        """
        texts = frozenset(words(caption) for caption in captions)
        if not texts:
            raise RewardError("novelty is counted against the training references: expected some, got none")
        return cls(frozenset(word for text in texts for word in text), texts)

    def novel_word_counts(self, captions: Sequence[str]) -> np.ndarray:
        """(N, 2) per caption: words that stand in no training reference, and all words.

        The share of novel words in a corpus is the ratio of the columns' sums.
        """
        texts = [words(caption) for caption in captions]
        rows = [[sum(word not in self.words for word in text), len(text)] for text in texts]
        return np.array(rows, dtype=float).reshape(len(rows), 2)

    def is_novel(self, captions: Sequence[str]) -> list[bool]:
        """Per caption, whether it equals no training reference word for word.

        The share of such captions is reported by Shetty et al. 2017 (arXiv:1703.10476) and Dai et al. 2017
        (arXiv:1703.06029). Nonsense is novel too: to be read beside the scores.
        """
        return [words(caption) not in self.captions for caption in captions]
