"""Builders of what caption selection scores with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rewards.cider import CiderD
from rewards.document_frequencies import DocumentFrequencies
from scst.data.selection import CaptionScores


def consensus_scores(references: Iterable[Sequence[str]], split: str) -> CaptionScores:
    """CIDEr-D with the document frequencies of the captions that are chosen from.

    The end of sequence is left out: every human caption has one.
    """
    references = list(references)
    return CiderD(DocumentFrequencies.from_references(references, eos="omitted", split=split)).scores
