"""Numbers about captions and images, for the data report: plain counts, computed once."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.scorers.text import words
from scst.data.preparation.cleaning import degenerate_kind
from scst.data.preparation.inspection import Example
from scst.data.preparation.selection import CaptionScores, sibling_scores
from scst.data.splits import seeded_hash

_FUNCTION_WORDS = """
    a an the this that these those it its is are was were be been there here and or but with without of in on
    at to by from for as into onto near next beside between around along we can see one some many
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Left out of the top words and the word cloud, which would show nothing else."""
CATEGORY_COLUMNS = ("category", "scene", "class", "label")
SHOWN = 20


@dataclass(frozen=True)
class CaptionStatistics:
    """What there is in the captions of some examples.

    Attributes:
        images, captions: how many.
        distinct: different captions of all images.
        repeated_in_image: captions that an earlier caption of the same image already was.
        lengths: words per caption -> captions.
        frequencies: word -> occurrences.
        distinct_per_image: number of different captions -> images.
        most_repeated: (caption, times), the most frequent ones.
        degenerate: kind -> captions.
        degenerate_examples: (image id, caption, kind), the first ones.
    """

    images: int
    captions: int
    distinct: int
    repeated_in_image: int
    lengths: Counter[int]
    frequencies: Counter[str]
    distinct_per_image: Counter[int]
    most_repeated: list[tuple[str, int]]
    degenerate: Counter[str]
    degenerate_examples: list[tuple[str, str, str]]

    @property
    def mean_length(self) -> float:
        """Words per caption."""
        return sum(length * count for length, count in self.lengths.items()) / max(1, self.captions)

    @property
    def vocabulary(self) -> int:
        """Distinct words."""
        return len(self.frequencies)

    def summary(self) -> dict[str, float]:
        """The numbers that fit a line, for tables and JSON."""
        return {
            "images": self.images,
            "captions": self.captions,
            "distinct_captions": self.distinct,
            "repeated_in_image": self.repeated_in_image,
            "degenerate_captions": sum(self.degenerate.values()),
            "vocabulary": self.vocabulary,
            "words_per_caption": round(self.mean_length, 2),
            "shortest": min(self.lengths, default=0),
            "longest": max(self.lengths, default=0),
        }


def count_captions(examples: Sequence[Example]) -> CaptionStatistics:
    """Count the captions of some examples."""
    texts = Counter(caption for example in examples for caption in example.references)
    lengths: Counter[int] = Counter()
    frequencies: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for caption, count in texts.items():
        found = words(caption)
        lengths[len(found)] += count
        frequencies.update({word: count * times for word, times in Counter(found).items()})
        if kind := degenerate_kind(caption):
            kinds[caption] = kind
    degenerate = [
        (e.image_id, caption, kinds[caption])
        for e in examples
        for caption in e.references
        if caption in kinds
    ]
    different = [len(set(example.references)) for example in examples]
    return CaptionStatistics(
        images=len(examples),
        captions=texts.total(),
        distinct=len(texts),
        repeated_in_image=texts.total() - sum(different),
        lengths=lengths,
        frequencies=frequencies,
        distinct_per_image=Counter(different),
        most_repeated=texts.most_common(SHOWN // 2),
        degenerate=Counter(kind for *_, kind in degenerate),
        degenerate_examples=degenerate[:SHOWN],
    )


def top_words(frequencies: Mapping[str, int], count: int = SHOWN) -> list[str]:
    """The most frequent words that are no function words."""
    content = Counter({word: times for word, times in frequencies.items() if word not in FUNCTION_WORDS})
    return [word for word, _ in content.most_common(count)]


def equal_images(examples: Sequence[Example]) -> list[list[str]]:
    """Ids of images with the same content, a list per picture."""
    groups: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        groups[example.content_hash].append(example.image_id)
    return [ids for ids in groups.values() if len(ids) > 1]


def seen_in_training(examples: Sequence[Example], train_split: str) -> dict[str, tuple[int, int]]:
    """For every other split: how many of its captions stand word for word in training, of how many."""
    training = {caption for e in examples if e.split == train_split for caption in e.references}
    found: dict[str, tuple[int, int]] = {}
    for split in dict.fromkeys(e.split for e in examples if e.split != train_split):
        captions = [caption for e in examples if e.split == split for caption in e.references]
        found[split] = sum(caption in training for caption in captions), len(captions)
    return found


def category_counts(
    examples: Sequence[Example],
    categories: Mapping[str, str] | None = None,
    features: Mapping[str, Any] | None = None,
) -> Counter[str] | None:
    """Images per category; None when nothing tells.

    Args:
        categories: image id -> category; by default the first of the columns category, scene, class, label.
        features: of the columns; one with names for its numbers (``ClassLabel``) is counted by names.
    """
    if categories:
        return Counter(categories.get(e.image_id, "(none)") for e in examples)
    column = next((name for name in CATEGORY_COLUMNS if examples and name in examples[0].columns), None)
    if column is None:
        return None
    name_of = getattr((features or {}).get(column), "int2str", str)
    values = (e.columns[column] for e in examples)
    return Counter("(none)" if value in (None, "") else name_of(value) for value in values)


@dataclass(frozen=True)
class Agreement:
    """How much the captions of an image agree, each scored against its siblings.

    Attributes:
        images: how many were sampled.
        mean: over all their captions.
        distinct_mean: over different captions only, of the images that have several: a caption that is
            repeated agrees with itself.
        distinct_images: how many those are.
        per_image: the mean of every sampled image.
    """

    images: int
    mean: float
    distinct_mean: float
    distinct_images: int
    per_image: list[float]


def agreement_sample(examples: Sequence[Example], size: int, seed: int) -> list[list[str]]:
    """Captions of a seeded sample of the images that have several."""
    several = [example for example in examples if len(example.references) > 1]
    several.sort(key=lambda example: seeded_hash(seed, f"agreement:{example.image_id}"))
    return [example.references for example in several[:size]]


def agreement(references: Sequence[Sequence[str]], score: CaptionScores) -> Agreement:
    """Score the captions of images against their siblings.

    Args:
        references: image-major, two or more each.
        score: ``(captions, references) -> scores``.
    """
    values = sibling_scores(references, score)
    different = [list(dict.fromkeys(captions)) for captions in references]
    different = [captions for captions in different if len(captions) > 1]
    distinct_values = sibling_scores(different, score)
    return Agreement(
        images=len(values),
        mean=_mean([value for group in values for value in group]),
        distinct_mean=_mean([value for group in distinct_values for value in group]),
        distinct_images=len(different),
        per_image=[_mean(group) for group in values],
    )


def agreements(
    references: Sequence[Sequence[str]], scorers: Mapping[str, CaptionScores], on_done: Callable[[str], None]
) -> dict[str, Agreement]:
    """:func:`agreement` by every scorer, by its name."""
    found = {}
    for name, score in scorers.items():
        found[name] = agreement(references, score)
        on_done(name)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
