"""Numbers for n-grams, so that those of many captions are counted and looked up as arrays.

A word has the number that a dictionary gives it. A bigram is a pair of words, a trigram a pair of its first
bigram and its last word, a 4-gram a pair of bigrams; pairs are 64-bit keys in sorted arrays. Nothing is lost
to hashing: equal numbers mean equal n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from rewards.scorers.document_frequencies import MAX_ORDER

NUMBER_BITS = 32


class _Words(dict[str, int]):
    """Permanent numbers of words; other words have a number until ``unknown`` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        return self.unknown.setdefault(word, len(self) + len(self.unknown))


class _Pairs:
    """Permanent numbers of pairs of numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._keys = np.array([np.iinfo(np.int64).max])  # every key has a place before it
        self._numbers = np.array([-1])

    def __len__(self) -> int:
        return len(self._keys) - 1

    def numbers(self, first: np.ndarray, second: np.ndarray, lasting: bool) -> np.ndarray:
        """Numbers of pairs. New pairs get the next ones, permanently or (not ``lasting``) for this call."""
        keys, which = np.unique((first << NUMBER_BITS) | second, return_inverse=True)
        row = np.searchsorted(self._keys, keys)
        numbers = self._numbers[row]
        new = np.flatnonzero(self._keys[row] != keys)
        numbers[new] = np.arange(len(self), len(self) + len(new))
        if lasting and len(new):
            self._keys = np.insert(self._keys, row[new], keys[new])
            self._numbers = np.insert(self._numbers, row[new], numbers[new])
        return numbers[which]


class NgramIndex:
    """Numbers of n-grams of order 1 to 4; n-grams of one order are equal when their numbers are."""

    def __init__(self) -> None:
        self._words = _Words()
        self._pairs = [_Pairs() for _ in range(MAX_ORDER - 1)]  # bigrams, trigrams, 4-grams

    @property
    def sizes(self) -> np.ndarray:
        """(4,) how many n-grams of each order have a permanent number; these are the numbers from 0."""
        return np.array([len(self._words), *map(len, self._pairs)])

    def numbers(
        self, texts: Sequence[Sequence[str]], *, lasting: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells and numbers of all n-grams of N texts, as often as they stand there.

        Args:
            texts: N lists of words.
            lasting: keep the numbers of n-grams that were not known.

        Returns:
            Two arrays (G,): ``4 * text + order - 1``, and the number.
        """
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        words = self._numbers_of_words(chain.from_iterable(texts), int(lengths.sum()), lasting)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words to the end of the text
        places = [np.flatnonzero(left >= order) for order in range(1, MAX_ORDER + 1)]
        _, second, third, fourth = places
        of_bigrams, of_trigrams, of_fourgrams = self._pairs
        bigrams = np.empty_like(words)
        bigrams[second] = of_bigrams.numbers(words[second], words[second + 1], lasting)
        trigrams = of_trigrams.numbers(bigrams[third], words[third + 2], lasting)
        fourgrams = of_fourgrams.numbers(bigrams[fourth], bigrams[fourth + 2], lasting)
        cell = MAX_ORDER * np.repeat(np.arange(len(texts)), lengths)
        cells = [cell[place] + order for order, place in enumerate(places)]
        return np.concatenate(cells), np.concatenate([words, bigrams[second], trigrams, fourgrams])

    def _numbers_of_words(self, words: chain[str], how_many: int, lasting: bool) -> np.ndarray:
        known = self._words
        known.unknown.clear()
        numbers = np.fromiter(map(known.__getitem__, words), np.int64, how_many)
        if lasting:
            known.update(known.unknown)
        return numbers
