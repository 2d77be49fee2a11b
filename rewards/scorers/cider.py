"""CIDEr-D and CIDEr with fixed document frequencies and cached reference counts, a batch at a time.

Vedantam et al. 2015, arXiv:1411.5726, section 4: the mean over n-gram orders 1 to 4 and over references of
the cosine of TF-IDF vectors, times 10. CIDEr-D clips the candidate's counts to those of the reference and
multiplies by a Gaussian penalty on the difference of lengths (sigma 6), as implemented in pycocoevalcap's
``Cider``, which everybody reports as "CIDEr": no stemming, and "length" counts bigrams. Equal to it to 1e-9
when the corpus is the batch.

Shapes: N captions, U distinct reference sets, R references, M distinct n-grams of all captions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.scorers.document_frequencies import EOS_WORD, DocumentFrequencies
from rewards.scorers.ngrams import MAX_ORDER, NUMBER_BITS
from rewards.scorers.tokenizer import NAME as TOKENIZER
from rewards.scorers.tokenizer import tokenize

SIGMA = 6.0
KEPT_IMAGES = 8192
"""Reference sets whose counts are kept, those scored last: about 2.5 kB each on RSICD."""
MAXIMUM = 10.0
"""The score of a caption that equals all its references."""

# a key, from its highest bits down: text (or image), order - 1, number of the n-gram
_NUMBER = (1 << NUMBER_BITS) - 1
_IMAGE = MAX_ORDER << NUMBER_BITS


@dataclass(frozen=True, slots=True)
class _References:
    """What scoring needs of the references of one image.

    Attributes:
        keys: (G,) order and number of every distinct n-gram, ascending.
        counts: (G, R) how often each stands in each reference.
        norms: (4, R) of the TF-IDF vectors.
        lengths: (R,) bigrams.
    """

    keys: np.ndarray
    counts: np.ndarray
    norms: np.ndarray
    lengths: np.ndarray


class Cider:
    """CIDEr (no clipping, no length penalty) with one table of document frequencies.

    Args:
        frequencies: the table; its end-of-sequence policy is used for captions too.

    Raises:
        ValueError: when the table was counted with another tokeniser than captions are cut with here.
    """

    title = "CIDEr"

    def __init__(self, frequencies: DocumentFrequencies):
        if frequencies.tokenizer != TOKENIZER:
            raise ValueError(
                f"the document frequencies were counted with tokenizer {frequencies.tokenizer!r}, but "
                f"captions are tokenised with {TOKENIZER!r}: build the table again"
            )
        self.frequencies = frequencies
        counts = frequencies.ngram_counts
        self._index, self._counts = counts.index.copy(), counts.table
        self._first, self._last = counts.first, counts.last
        self._idf = self._idf_of_counts()
        self._references: dict[tuple[str, ...], _References] = {}

    @property
    def signature(self) -> str:
        """Everything a comparable number must share, without the number of references."""
        table = self.frequencies
        eos = "yes" if table.eos == "emitted" else "no"
        corpus = f"{table.split},image,{table.fingerprint[:6]}"
        return f"{self.title}|df:{corpus}|tok:{table.tokenizer}|eos:{eos}|{self._variant}n:{MAX_ORDER}"

    def score(self, caption: str, references: Sequence[str], *, ended_by_eos: bool = True) -> float:
        """Score of one caption; :meth:`scores` is the fast way for many."""
        return self.scores([caption], [references], [ended_by_eos])[0]

    def scores(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        ended_by_eos: Sequence[bool] | None = None,
    ) -> list[float]:
        """Scores of N captions, 0 to 10.

        Args:
            captions: N captions.
            references: N lists of human captions; what is computed of the last 8,192 lists is kept.
            ended_by_eos: N, whether the policy ended the caption itself (default: all). Under the "emitted"
                policy only such a caption gets the end-of-sequence word that every reference has.

        Raises:
            ValueError: when an image has no reference, or the numbers differ.
        """
        ended = [True] * len(captions) if ended_by_eos is None else ended_by_eos
        if not len(captions) == len(references) == len(ended):
            raise ValueError(
                f"expected one list of references and one end per caption, got {len(captions)} captions, "
                f"{len(references)} lists and {len(ended)} ends"
            )
        if not captions:
            return []
        while len(self._references) > KEPT_IMAGES:
            del self._references[next(iter(self._references))]
        slots: dict[tuple[str, ...], int] = {}
        slot = np.array([slots.setdefault(tuple(group), len(slots)) for group in references])
        groups = [self._cached(group) for group in slots]  # first: n-grams of references get lasting numbers
        words = [self._words(caption, bool(end)) for caption, end in zip(captions, ended, strict=True)]
        return self._similarities(words, slot, groups).tolist()

    _variant = ""  # what the signature says beyond CIDEr's

    @staticmethod
    def _overlap(counts: np.ndarray, reference_counts: np.ndarray) -> np.ndarray:
        """(m, 1) and (m, R) counts of shared n-grams to the products of the dot product."""
        return counts * reference_counts

    @staticmethod
    def _penalty(difference: np.ndarray) -> np.ndarray:
        """Factor for (N, R) differences of length in bigrams."""
        return np.ones_like(difference)

    def _words(self, caption: str, ended_by_eos: bool) -> tuple[str, ...]:
        words = tokenize(caption)
        return (*words, EOS_WORD) if ended_by_eos and self.frequencies.eos == "emitted" else words

    def _cached(self, references: tuple[str, ...]) -> _References:
        found = self._references.pop(references, None)
        if found is None:
            if not references:
                raise ValueError("CIDEr needs at least one reference per image, got none")
            found = self._reference_counts(references)
        self._references[references] = found  # last: those in front have not been used for longest
        return found

    def _reference_counts(self, references: tuple[str, ...]) -> _References:
        words = [self._words(reference, True) for reference in references]
        keys, counts = self._counted(words, lasting=True)
        cell, key = keys >> NUMBER_BITS, keys % _IMAGE
        norms = self._norms(cell, keys, counts, len(words))
        distinct, row = np.unique(key, return_inverse=True)
        table = np.zeros((len(distinct), len(words)), dtype=np.uint16)
        table[row, cell // MAX_ORDER] = counts
        return _References(distinct, table, norms.T.copy(), _bigrams(words))

    def _idf_of_counts(self) -> np.ndarray:
        """Inverse document frequency by number of images; what is in none counts as in one."""
        table, distinct = self.frequencies, np.unique(self._counts)
        idf = np.zeros(int(distinct[-1]) + 1)
        idf[distinct] = [table.max_idf - math.log(max(1, count)) for count in distinct.tolist()]
        return idf

    def _counted(
        self, words: Sequence[Sequence[str]], lasting: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys (text, order, number) of the n-grams of some texts, ascending and distinct; their counts."""
        cells, numbers = self._index.numbers(words, lasting=lasting)
        return np.unique((cells << NUMBER_BITS) | numbers, return_counts=True)

    def _idf_of(self, keys: np.ndarray) -> np.ndarray:
        order, number = (keys >> NUMBER_BITS) % MAX_ORDER, keys & _NUMBER
        return self._idf[self._counts[np.minimum(self._first[order] + number, self._last[order])]]

    def _norms(self, cell: np.ndarray, keys: np.ndarray, counts: np.ndarray, texts: int) -> np.ndarray:
        """(texts, 4) norms of the TF-IDF vectors."""
        squares = (counts * self._idf_of(keys)) ** 2
        return np.sqrt(np.bincount(cell, squares, texts * MAX_ORDER)).reshape(texts, MAX_ORDER)

    def _similarities(
        self, words: Sequence[Sequence[str]], slot: np.ndarray, groups: Sequence[_References]
    ) -> np.ndarray:
        """(N,) scores: cosine per caption, order and reference; the penalty; the means."""
        texts, width = len(words), max(group.counts.shape[1] for group in groups)
        keys, counts = self._counted(words)
        cell = keys >> NUMBER_BITS
        shared, row = _find(keys, cell, slot, groups)
        reference_counts = np.concatenate([_padded(group.counts, width) for group in groups])[row]
        products = self._overlap(counts[shared, None], reference_counts.astype(float))
        products *= self._idf_of(keys[shared])[:, None] ** 2
        sums = [np.bincount(cell[shared], column, texts * MAX_ORDER) for column in products.T]
        norms = self._norms(cell, keys, counts, texts)[:, :, None]
        norms = norms * np.stack([_padded(group.norms, width) for group in groups])[slot]  # (N, 4, R)
        dots = np.stack(sums, -1).reshape(texts, MAX_ORDER, width).astype(float)  # bincount of nothing: int
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        lengths = np.stack([_padded(group.lengths, width) for group in groups])[slot]
        penalty = self._penalty(_bigrams(words)[:, None] - lengths)
        how_many = np.array([group.counts.shape[1] for group in groups])[slot]
        return MAXIMUM * (cosines.sum(1) * penalty).sum(-1) / MAX_ORDER / how_many


class CiderD(Cider):
    """CIDEr-D: CIDEr with clipped counts and the Gaussian length penalty; what everybody reports as CIDEr."""

    title = "CIDEr-D"
    _variant = f"sigma:{SIGMA:g}|"

    @staticmethod
    def _overlap(counts: np.ndarray, reference_counts: np.ndarray) -> np.ndarray:
        return np.minimum(counts, reference_counts) * reference_counts

    @staticmethod
    def _penalty(difference: np.ndarray) -> np.ndarray:
        return np.exp(-(difference**2) / (2 * SIGMA**2))


def _find(
    keys: np.ndarray, cell: np.ndarray, slot: np.ndarray, groups: Sequence[_References]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the n-grams of captions that their image's references have, and their rows in all counts."""
    sentinel = np.iinfo(np.int64).max  # every key has a place before it
    reference_keys = np.concatenate(
        [*(group.keys + i * _IMAGE for i, group in enumerate(groups)), [sentinel]]
    )
    wanted = keys % _IMAGE + slot[cell // MAX_ORDER] * _IMAGE
    row = np.searchsorted(reference_keys, wanted)
    shared = np.flatnonzero(reference_keys[row] == wanted)
    return shared, row[shared]


def _bigrams(words: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([max(0, len(text) - 1) for text in words], dtype=float)


def _padded(array: np.ndarray, width: int) -> np.ndarray:
    """Pad images that have fewer references than others with zeros: their cosine is 0."""
    missing = width - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array
