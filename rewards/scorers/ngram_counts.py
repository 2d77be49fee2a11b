"""In how many documents each n-gram stands, in arrays: 16 bytes an n-gram, where a dictionary takes 200."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from rewards.scorers.ngrams import MAX_ORDER, NUMBER_BITS, NgramIndex

Ngram = tuple[str, ...]
DOCUMENTS = 2000
"""Documents that are counted at a time."""
_ROWS = 100_000
"""N-grams that are spelled at a time."""


class NgramCounts(Mapping[Ngram, int]):
    """N-gram of 1 to 4 words -> number of documents, a mapping that is not changed.

    Args:
        index: numbers of the n-grams.
        by_order: four arrays: the count of every n-gram of an order, by number; 0: it is only a part of
            others.

    Attributes:
        index: the same; copy it before others get numbers in it.
        table: all counts, (G + 4,) int32; behind those of each order a zero, for n-grams without a number.
        first, last: (4,) where in ``table`` each order begins, and where its zero stands.
    """

    def __init__(self, index: NgramIndex, by_order: Sequence[np.ndarray]):
        self.index = index
        self.table = np.concatenate([np.append(counts, 0) for counts in by_order]).astype(np.int32)
        self.last = np.cumsum([len(counts) + 1 for counts in by_order]) - 1
        self.first = self.last - [len(counts) for counts in by_order]

    @classmethod
    def of_documents(cls, documents: Iterable[Iterable[Sequence[str]]]) -> tuple[NgramCounts, int]:
        """Count the n-grams of documents, each of several texts, and the documents.

        Args:
            documents: of each, the words of its texts.
        """
        index, counts = NgramIndex(), [np.zeros(0, np.int32) for _ in range(MAX_ORDER)]
        iterator, num_documents = iter(documents), 0
        while some := [list(texts) for texts in islice(iterator, DOCUMENTS)]:
            cells, numbers = index.numbers(list(chain.from_iterable(some)), lasting=True)
            document = np.repeat(np.arange(len(some)), [len(texts) for texts in some])[cells // MAX_ORDER]
            key = ((document * MAX_ORDER + cells % MAX_ORDER) << NUMBER_BITS) | numbers
            distinct = np.unique(key)  # however often it stands in a document
            orders, numbers = (distinct >> NUMBER_BITS) % MAX_ORDER, distinct & ((1 << NUMBER_BITS) - 1)
            counts = [
                np.bincount(numbers[orders == order], minlength=size).astype(np.int32)
                + np.pad(counts[order], (0, size - len(counts[order])))
                for order, size in enumerate(index.sizes.tolist())
            ]
            num_documents += len(some)
        return cls(index, counts), num_documents

    @classmethod
    def of_mapping(cls, counts: Mapping[Ngram, int]) -> NgramCounts:
        """The same counts.

        Raises:
            ValueError: on an n-gram of no word or more than four.
        """
        ngrams, index = list(counts), NgramIndex()
        wrong = [ngram for ngram in ngrams if not 1 <= len(ngram) <= MAX_ORDER]
        if wrong:
            raise ValueError(f"expected n-grams of 1 to {MAX_ORDER} words, got {wrong[0]!r}")
        cells, numbers = index.numbers(ngrams, lasting=True)
        lengths = np.array([len(ngram) for ngram in ngrams], dtype=np.int64)
        whole = cells % MAX_ORDER + 1 == lengths[cells // MAX_ORDER]  # as a text it is its own last n-gram
        which, orders, numbers = cells[whole] // MAX_ORDER, cells[whole] % MAX_ORDER, numbers[whole]
        values = np.array([counts[ngram] for ngram in ngrams], dtype=np.int32)
        by_order = [np.zeros(size, np.int32) for size in index.sizes]
        for order, array in enumerate(by_order):
            array[numbers[orders == order]] = values[which[orders == order]]
        return cls(index, by_order)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.table))

    def __iter__(self) -> Iterator[Ngram]:
        return (ngram for ngram, _ in self.sorted_items())

    def __getitem__(self, ngram: Ngram) -> int:
        if not 1 <= len(ngram) <= MAX_ORDER:
            raise KeyError(ngram)
        _, numbers = self.index.numbers([ngram])  # by order: the whole stands last
        order = len(ngram) - 1
        count = int(self.table[min(self.first[order] + numbers[-1], self.last[order])])
        if not count:
            raise KeyError(ngram)
        return count

    def sorted_items(self) -> Iterator[tuple[Ngram, int]]:
        """N-grams in the order that sorting them has, with their counts."""
        words = np.array(self.index.words, dtype=object)
        rank = np.empty(len(words) + 1, np.int64)  # one more: that of the -1 behind shorter n-grams
        rank[np.argsort(words, kind="stable")] = np.arange(len(words))
        rank[-1] = -1
        counts = np.delete(self.table, self.last)
        rows = self.index.spelled()
        counted = np.flatnonzero(counts)
        ranks = rank[rows[counted]]
        order = counted[np.lexsort(ranks.T[::-1])]
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            spelled, lengths = words[rows[some]], (rows[some] >= 0).sum(1).tolist()
            for ngram, length, count in zip(spelled, lengths, counts[some].tolist(), strict=True):
                yield tuple(ngram[:length]), count

    def state(self) -> dict[str, Any]:
        """Arrays from which :meth:`from_state` makes the counts again."""
        return {**self.index.state(), "counts": self.table, "ends": self.last}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> NgramCounts:
        """The counts that :meth:`state` was of."""
        by_order = [part[:-1] for part in np.split(state["counts"], state["ends"][:-1] + 1)]
        return cls(NgramIndex.from_state(state), by_order)
