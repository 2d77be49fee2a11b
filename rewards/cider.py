"""CIDEr-D with fixed document frequencies and cached reference vectors.

Vedantam et al. 2015, arXiv:1411.5726, section 4 and its CIDEr-D variant (clipped counts, Gaussian length
penalty), as implemented in pycocoevalcap's ``Cider``, which everybody reports as "CIDEr": sigma 6, n-grams of
order 1 to 4, times 10, no stemming, and "length" counts bigrams. Equal to it to 1e-9 when the corpus is the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.document_frequencies import (
    EOS_POLICIES,
    EOS_WORD,
    FILE_NAME,
    MAX_ORDER,
    DocumentFrequencies,
    Ngram,
    ngram_counts,
)
from rewards.tokenizer import NAME as TOKENIZER
from rewards.tokenizer import tokenize

SIGMA = 6.0
MAXIMUM = 10.0
"""The score of a caption that equals all its references."""

Vector = tuple[list[dict[Ngram, float]], list[float], int]
"""TF-IDF weights per order, their norms, and the number of bigrams."""


class CiderD:
    """Scores captions against references with one table of document frequencies.

    Args:
        frequencies: the table; its end-of-sequence policy is used for captions too.

    Raises:
        ValueError: when the table was counted with another tokeniser than captions are cut with here.
    """

    def __init__(self, frequencies: DocumentFrequencies):
        if frequencies.tokenizer != TOKENIZER:
            raise ValueError(
                f"the document frequencies were counted with tokenizer {frequencies.tokenizer!r}, but "
                f"captions are tokenised with {TOKENIZER!r}: build the table again"
            )
        self.frequencies = frequencies
        self._idf: dict[Ngram, float] = {}
        self._reference_vectors: dict[tuple[str, ...], list[Vector]] = {}

    def score(self, caption: str, references: Sequence[str], *, ended_by_eos: bool = True) -> float:
        """CIDEr-D of one caption, 0 to 10.

        Args:
            caption: the caption.
            references: human captions of the image; their vectors are computed once and kept.
            ended_by_eos: whether the policy ended the caption itself. Under the "emitted" policy only then
                the caption gets the end-of-sequence word that every reference has.

        Raises:
            ValueError: when there is no reference.
        """
        if not references:
            raise ValueError("CIDEr-D needs at least one reference per image, got none")
        candidate = self._vector(caption, with_eos=ended_by_eos)
        total = sum(_similarity(candidate, reference) for reference in self._vectors(tuple(references)))
        return MAXIMUM * total / MAX_ORDER / len(references)

    @property
    def signature(self) -> str:
        """Everything a comparable number must share, without the number of references."""
        table = self.frequencies
        eos = "yes" if table.eos == "emitted" else "no"
        corpus = f"{table.split},image,{table.fingerprint[:6]}"
        return f"CIDEr-D|df:{corpus}|tok:{table.tokenizer}|eos:{eos}|sigma:{SIGMA:g}|n:{MAX_ORDER}"

    def _vectors(self, references: tuple[str, ...]) -> list[Vector]:
        if references not in self._reference_vectors:
            self._reference_vectors[references] = [self._vector(r, with_eos=True) for r in references]
        return self._reference_vectors[references]

    def _vector(self, caption: str, *, with_eos: bool) -> Vector:
        words = tokenize(caption)
        if with_eos and self.frequencies.eos == "emitted":
            words += (EOS_WORD,)
        weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        squares = [0.0] * MAX_ORDER
        for ngram, count in ngram_counts(words).items():
            weight = count * self._cached_idf(ngram)
            weights[len(ngram) - 1][ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], max(0, len(words) - 1)

    def _cached_idf(self, ngram: Ngram) -> float:
        if ngram not in self._idf:
            self._idf[ngram] = self.frequencies.idf(ngram)
        return self._idf[ngram]


def _similarity(candidate: Vector, reference: Vector) -> float:
    """Sum over the orders of the clipped cosine, times the length penalty."""
    weights, norms, length = candidate
    reference_weights, reference_norms, reference_length = reference
    penalty = math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for order in range(MAX_ORDER):
        if norms[order] and reference_norms[order]:
            other = reference_weights[order]
            clipped = sum(
                min(w, other[ngram]) * other[ngram] for ngram, w in weights[order].items() if ngram in other
            )
            total += clipped / (norms[order] * reference_norms[order])
    return penalty * total


class CiderDReward:
    """CIDEr-D as a reward function: the reward of Rennie et al. 2017 (arXiv:1612.00563).

    Args:
        eos: "emitted" (default): the end of sequence counts as a word when the policy emitted it, so that a
            fragment ("... with a") does not score like a finished caption; "omitted": plain captions.
        frequencies: path of a saved table; by default it is built from the training references in ``setup``.
    """

    def __init__(self, eos: str = "emitted", frequencies: str | None = None):
        if eos not in EOS_POLICIES:
            raise ValueError(f"eos must be one of {', '.join(EOS_POLICIES)}, got {eos!r}")
        self.eos = eos
        self.scorer: CiderD | None = None
        if frequencies is not None:
            self._use(DocumentFrequencies.load(frequencies))

    def setup(self, dataset: Any) -> None:
        """Build the document frequencies from ``dataset["references"]`` unless a table was given."""
        if self.scorer is None:
            self._use(DocumentFrequencies.from_references(dataset["references"], eos=self.eos))

    def save_state(self, folder: str | Path) -> None:
        """Write the document frequencies into ``folder``."""
        if self.scorer is not None:
            self.scorer.frequencies.save(Path(folder) / FILE_NAME)

    def _use(self, frequencies: DocumentFrequencies) -> None:
        if frequencies.eos != self.eos:
            raise ValueError(
                f"the document frequencies were counted with eos={frequencies.eos!r}, but the reward wants "
                f"eos={self.eos!r}: build a table with the same policy or change the reward's `eos`"
            )
        self.scorer = CiderD(frequencies)

    def __call__(
        self,
        completions: Sequence[str],
        references: Sequence[Sequence[str]],
        ended_by_eos: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """CIDEr-D of every completion; without ``ended_by_eos`` all count as ended.

        Raises:
            RuntimeError: when called before ``setup``.
        """
        if self.scorer is None:
            raise RuntimeError(
                "call setup(dataset) with the training references before using the CIDEr-D reward"
            )
        ended = [True] * len(completions) if ended_by_eos is None else ended_by_eos
        return [
            self.scorer.score(caption, captions, ended_by_eos=bool(end))
            for caption, captions, end in zip(completions, references, ended, strict=True)
        ]
