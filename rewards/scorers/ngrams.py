"""Numbers for n-grams, so that those of many captions are counted and looked up as arrays.

A word has the number that a dictionary gives it. A bigram is a pair of words, a trigram a pair of its first
bigram and its last word, a 4-gram a pair of bigrams; pairs are 64-bit keys in sorted arrays. Nothing is lost
to hashing: equal numbers mean equal n-grams.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

MAX_ORDER = 4
NUMBER_BITS = 32


class _Words(dict[str, int]):
    """Permanent numbers of words; other words have a number until ``unknown`` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        return self.unknown.setdefault(word, len(self) + len(self.unknown))


class _Pairs:
    """Permanent numbers of pairs of numbers, in the order in which they were first seen.

    12 bytes a pair. The arrays are replaced and never changed, so that a copy may share them.
    """

    def __init__(self, keys: Sequence[int] = (), numbers: Sequence[int] = ()) -> None:
        self._keys = np.append(
            np.asarray(keys, np.int64), np.iinfo(np.int64).max
        )  # every key has a place before it
        self._numbers = np.append(np.asarray(numbers, np.int32), np.int32(-1))

    def __len__(self) -> int:
        return len(self._keys) - 1

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What :class:`_Pairs` is made of again: keys, ascending, and their numbers."""
        return self._keys[:-1], self._numbers[:-1]

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """First and second of every pair, by its number."""
        keys = np.empty_like(self._keys[:-1])
        keys[self._numbers[:-1]] = self._keys[:-1]
        return keys >> NUMBER_BITS, keys & ((1 << NUMBER_BITS) - 1)

    def numbers(self, first: np.ndarray, second: np.ndarray, lasting: bool) -> np.ndarray:
        """Numbers of pairs. New pairs get the next ones, permanently or (not ``lasting``) for this call."""
        keys, which = np.unique((first << NUMBER_BITS) | second, return_inverse=True)
        row = np.searchsorted(self._keys, keys)
        numbers = self._numbers[row].astype(np.int64)  # halves of keys
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

    def copy(self) -> NgramIndex:
        """An index with the same permanent numbers, which may get others from now on."""
        twin = NgramIndex()
        twin._words.update(self._words)
        twin._pairs = [copy.copy(pairs) for pairs in self._pairs]
        return twin

    @property
    def words(self) -> list[str]:
        """The words with a permanent number, by number."""
        return list(self._words)

    def spelled(self) -> np.ndarray:
        """(G, 4) numbers of the words of every n-gram with a permanent number; -1 behind shorter ones.

        By order, and in an order by number.
        """
        of_bigrams, of_trigrams, of_fourgrams = (pairs.parts() for pairs in self._pairs)
        words = np.arange(len(self._words))
        bigrams = np.stack(of_bigrams, 1)
        trigrams = np.column_stack([bigrams[of_trigrams[0]], of_trigrams[1]])
        fourgrams = np.column_stack([bigrams[of_fourgrams[0]], bigrams[of_fourgrams[1]]])
        orders = (words[:, None], bigrams, trigrams, fourgrams)
        rows = np.full((sum(map(len, orders)), MAX_ORDER), -1, np.int32)
        start = 0
        for order in orders:
            rows[start : start + len(order), : order.shape[1]] = order
            start += len(order)
        return rows

    def state(self) -> dict[str, Any]:
        """Arrays from which :meth:`from_state` makes the index again."""
        text = "\n".join(self._words).encode("utf-8", "surrogatepass")  # no word has a line break
        pairs = [each.arrays for each in self._pairs]
        return {
            "words": np.frombuffer(text, np.uint8),
            **{f"keys_{i}": keys for i, (keys, _) in enumerate(pairs)},
            **{f"numbers_{i}": numbers for i, (_, numbers) in enumerate(pairs)},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> NgramIndex:
        """The index that :meth:`state` was of."""
        index, text = cls(), state["words"].tobytes().decode("utf-8", "surrogatepass")
        index._words.update({word: i for i, word in enumerate(text.split("\n"))} if text else {})
        index._pairs = [_Pairs(state[f"keys_{i}"], state[f"numbers_{i}"]) for i in range(MAX_ORDER - 1)]
        return index

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
