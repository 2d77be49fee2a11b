"""Builders around human captions: cleaning steps, what scores captions, tables of document frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewards.bleu import BleuReward
from rewards.errors import RewardError
from rewards.scorers.cider import CiderD
from rewards.scorers.clipscore import ClipScorer
from rewards.scorers.document_frequencies import DocumentFrequencies
from rewards.scorers.java import find_java
from rewards.scorers.sentence_similarity import SentenceSimilarity
from scst.data.loading import load_splits
from scst.data.preparation.cleaning import Step, parse_steps
from scst.data.preparation.inspection import image_scores
from scst.data.preparation.prepared_dataset import CorpusScores
from scst.data.preparation.selection import CaptionScores, sibling_scores
from scst.data.preparation.streams import RowStream
from scst.data.preparation.synonyms import Embed, synonym_step, wordnet_related
from scst.errors import RecipeError


def consensus_scores(references: Iterable[Sequence[str]], split: str) -> CaptionScores:
    """CIDEr-D with the document frequencies of the captions that are chosen from.

    The end of sequence is left out: every human caption has one.
    """
    references = list(references)
    return CiderD(DocumentFrequencies.from_references(references, eos="omitted", split=split)).scores


def write_document_frequencies(recipe: Any) -> None:
    """Count the references of a recipe's training split and write the table to ``output``."""
    console = Console()
    rows = load_splits(
        recipe.dataset,
        [recipe.train_split],
        fractions=recipe.split_fractions,
        split_seed=recipe.split_seed,
        on_bad_example=recipe.on_bad_example,
        console=console,
    ).splits[recipe.train_split]
    table = DocumentFrequencies.from_references(rows["references"], eos=recipe.eos, split=recipe.train_split)
    Path(recipe.output).parent.mkdir(parents=True, exist_ok=True)
    table.save(recipe.output)
    console.print(
        f"{recipe.output}: {len(table.counts)} n-grams of {table.num_images} images, split {table.split}, "
        f"end of sequence {table.eos}, fingerprint {table.fingerprint[:6]}"
    )


def build_steps(recipe: Any, mapping: dict[str, str]) -> list[Step]:
    """The cleaning steps of a recipe; ``mapping`` is filled with the synonyms when they are applied.

    Raises:
        RecipeError: a step is not known, or lacks something.
    """
    synonyms = None
    if "synonyms" in recipe.cleaning:
        synonyms = synonym_step(
            build_embed(recipe),
            distance=recipe.synonym_distance,
            min_samples=recipe.synonym_min_samples,
            rare=recipe.synonym_rare,
            related=wordnet_related() if recipe.synonym_wordnet else None,
            found=mapping,
        )
    return parse_steps(recipe.cleaning, synonyms)


def build_embed(recipe: Any) -> Embed:
    """Words to unit vectors by the recipe's sentence encoder, which loads at first use.

    Raises:
        RecipeError: there is no such encoder.
    """
    try:
        scorer = SentenceSimilarity(recipe.sentence_model)
    except RewardError as error:
        raise RecipeError(f"cleaning: synonyms: {error}") from error
    return lambda texts: scorer.encoder.encode(
        list(texts), normalize_embeddings=True, show_progress_bar=False
    )


def build_clip(recipe: Any) -> ClipScorer:
    """The scorer of ``selection: clipscore``.

    Raises:
        RecipeError: no such model.
    """
    try:
        return ClipScorer(recipe.clip_model)
    except RewardError as error:
        raise RecipeError(f"clip_model: {error}") from error


def build_agreement(recipe: Any) -> tuple[dict[str, CaptionScores], dict[str, str]]:
    """Scorers of the agreement by name, and of those that cannot be had the reason."""
    scorers: dict[str, CaptionScores] = {}
    missing: dict[str, str] = {}
    for name in recipe.agreement:
        try:
            scorers[name] = _agreement_scorer(name, recipe)
        except RewardError as error:
            missing[name] = str(error)
    return scorers, missing


def _agreement_scorer(name: str, recipe: Any) -> CaptionScores:
    if name == "bleu_4":
        return lambda captions, references: BleuReward()(completions=captions, references=references)
    if name == "cosine":
        return SentenceSimilarity(recipe.sentence_model, aggregate="mean").scores
    find_java()
    from rewards.scorers.meteor import meteor_scores

    return lambda captions, references: meteor_scores(captions, references).per_caption


def corpus_scores(
    recipe: Any, stream: RowStream, bar: Callable[[int], Callable[[int], None]]
) -> CorpusScores | None:
    """What ``selection`` scores captions with; None where it needs no scores."""
    if recipe.selection == "consensus":
        return lambda examples: sibling_scores(
            [e.references for e in examples],
            consensus_scores([e.references for e in examples], recipe.train_split),
        )
    if recipe.selection == "clipscore":
        clip = build_clip(recipe)
        return lambda examples: image_scores(stream, examples, clip.cosines, bar(len(examples)))
    return None
