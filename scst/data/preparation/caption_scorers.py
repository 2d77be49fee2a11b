"""What scores human captions, or embeds their words, while a dataset is prepared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rewards.bleu import BleuReward
from rewards.errors import RewardError
from rewards.scorers.cider import CiderD
from rewards.scorers.clipscore import ClipScorer
from rewards.scorers.document_frequencies import DocumentFrequencies
from rewards.scorers.java import find_java
from rewards.scorers.sentence_similarity import SentenceSimilarity
from scst.data.preparation.selection import CaptionScores
from scst.data.preparation.synonyms import Embed
from scst.errors import RecipeError

AGREEMENTS = ("bleu_4", "meteor", "cosine")


def consensus_scores(references: Iterable[Sequence[str]], split: str) -> CaptionScores:
    """CIDEr-D with the document frequencies of the captions that are chosen from.

    The end of sequence is left out: every human caption has one.

    Args:
        references: image-major captions.
        split: their split, for the table's fingerprint.
    """
    references = list(references)
    return CiderD(DocumentFrequencies.from_references(references, eos="omitted", split=split)).scores


def word_embedding(sentence_model: str | None) -> Embed:
    """Words to unit vectors by a sentence encoder, which is loaded at first use.

    Args:
        sentence_model: folder or hub id; None for the bundled one, if it is installed.

    Raises:
        RecipeError: there is no such encoder.
    """
    try:
        scorer = SentenceSimilarity(sentence_model)
    except RewardError as error:
        raise RecipeError(f"cleaning: synonyms: {error}") from error
    return lambda texts: scorer.encoder.encode(
        list(texts), normalize_embeddings=True, show_progress_bar=False
    )


def clip_scorer(clip_model: str | None) -> ClipScorer:
    """The scorer of the selection ``clipscore``.

    Raises:
        RecipeError: no such model.
    """
    try:
        return ClipScorer(clip_model)
    except RewardError as error:
        raise RecipeError(f"clip_model: {error}") from error


def agreement_scorers(
    names: Sequence[str], sentence_model: str | None = None
) -> tuple[dict[str, CaptionScores], dict[str, str]]:
    """Scorers by name, and for each of those that cannot be used here the reason.

    Args:
        names: of :data:`AGREEMENTS`.
        sentence_model: of ``cosine``.
    """
    scorers: dict[str, CaptionScores] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            scorers[name] = _agreement_scorer(name, sentence_model)
        except RewardError as error:
            missing[name] = str(error)
    return scorers, missing


def _agreement_scorer(name: str, sentence_model: str | None) -> CaptionScores:
    if name == "bleu_4":
        return lambda captions, references: BleuReward()(completions=captions, references=references)
    if name == "cosine":
        return SentenceSimilarity(sentence_model, aggregate="mean").scores
    find_java()
    from rewards.scorers.meteor import meteor_scores

    return lambda captions, references: meteor_scores(captions, references).per_caption
