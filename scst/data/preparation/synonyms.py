"""Rare words mapped to a frequent word of the same meaning: embeddings, DBSCAN, and a few refusals.

The step of a published remote-sensing captioner ("embed each token via a pretrained sentence-transformer,
cluster with DBSCAN, and map infrequent variants to canonical forms using WordNet"), mended in three places:
what comes out are words, never cluster ids; a cluster only proposes, for DBSCAN chains (red - reddish -
colour - coloured - blue are one cluster), so a rare word must lie near its canonical word itself; and words
whose neighbours are their opposites (colours, numbers, sides, sizes) are left alone.
"""

import importlib.util
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rewards.scorers.text import words
from scst.data.preparation.cleaning import Captions, CaptionStep, Cleaned
from scst.errors import RecipeError

Embed = Callable[[Sequence[str]], np.ndarray]
"""(N, D) unit vectors of N words."""
Related = Callable[[str, str], bool]

_PROTECTED = """
    zero one two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds thousand
    thousands half quarter first second third single double triple both no none not without never
    black white grey gray red green blue yellow orange purple pink brown dark light bright darker brighter
    left right top bottom upper lower up down north south east west northern southern eastern western
    above below inside outside full empty open closed same different old new
    big bigger biggest large larger largest small smaller smallest little tiny huge tall taller short shorter
    long longer wide wider narrow narrower high higher low dense sparse
    many more most few fewer some several less least
"""
PROTECTED = frozenset(_PROTECTED.split())
"""Never mapped and never mapped to: in an embedding their nearest words are often their opposites."""
SHORTEST = 3  # letters; shorter words are function words


def synonym_step(
    embed: Embed,
    *,
    distance: float = 0.5,
    min_samples: int = 2,
    rare: int = 20,
    related: Related | None = None,
    found: dict[str, str] | None = None,
) -> CaptionStep:
    """The cleaning step ``synonyms``.

    Args:
        embed: words to unit vectors.
        distance, min_samples: DBSCAN's eps (Euclidean, 0 to 2) and neighbours of a core word.
        rare: words that occur at most so often are mapped, to words that occur more often.
        related: a second opinion on (rare word, canonical word), such as :func:`wordnet_related`.
        found: filled with the mapping, for reports.

    Raises:
        RecipeError: a number out of range.
    """
    if not 0 < distance < 2 or min_samples < 1 or rare < 1:
        raise RecipeError(
            f"synonyms: expected 0 < distance < 2, min_samples >= 1 and rare >= 1; got {distance}, "
            f"{min_samples}, {rare}"
        )

    def apply(captions: Captions) -> Cleaned:
        counts = Counter(word for group in captions for caption in group for word in words(caption))
        mapping = synonym_map(
            counts, embed, distance=distance, min_samples=min_samples, rare=rare, related=related
        )
        if found is not None:
            found.update(mapping)
        return [[replace_words(caption, mapping) for caption in group] for group in captions]

    return apply


def synonym_map(
    counts: Mapping[str, int],
    embed: Embed,
    *,
    distance: float,
    min_samples: int,
    rare: int,
    related: Related | None = None,
) -> dict[str, str]:
    """Rare word -> canonical word; arguments as of :func:`synonym_step`.

    The canonical word is the most frequent of the words of the rare word's cluster that lie within
    ``distance`` of it. Both are words of ``counts``.
    """
    from sklearn.cluster import DBSCAN

    candidates = sorted(word for word in counts if _can_be_mapped(word))
    if not candidates:
        return {}
    vectors = np.asarray(embed(candidates), dtype=np.float32)
    labels = DBSCAN(eps=distance, min_samples=min_samples).fit_predict(vectors)
    clusters: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(labels >= 0).tolist():
        clusters[labels[number]].append(number)
    mapping = {}
    for members in clusters.values():
        frequent = [i for i in members if counts[candidates[i]] > rare]
        for number in (i for i in members if counts[candidates[i]] <= rare):
            word = candidates[number]
            near = [i for i in frequent if np.linalg.norm(vectors[i] - vectors[number]) <= distance]
            near = [i for i in near if related is None or related(word, candidates[i])]
            if near:
                mapping[word] = candidates[max(near, key=lambda i: (counts[candidates[i]], candidates[i]))]
    return mapping


def replace_words(caption: str, mapping: Mapping[str, str]) -> str:
    """The caption with words replaced, a leading capital kept; spaces and punctuation stay."""

    def replaced(match: re.Match[str]) -> str:
        word = match[0].strip(string.punctuation)  # as rewards.scorers.text.words cuts them
        canonical = mapping.get(word.lower())
        if canonical is None:
            return match[0]
        return match[0].replace(word, canonical.capitalize() if word[0].isupper() else canonical)

    return re.sub(r"\S+", replaced, caption)


def wordnet_related() -> Related:
    """Whether two words share a meaning in WordNet, one of them perhaps in another form (trees, tree).

    Raises:
        RecipeError: nltk or its WordNet is not installed.
    """
    advice = (
        "install both: pip install nltk && python -m nltk.downloader wordnet; or switch synonym_wordnet off"
    )
    if importlib.util.find_spec("nltk") is None:
        raise RecipeError(f"synonym_wordnet: the package nltk is not installed; {advice}")
    from nltk.corpus import wordnet

    try:
        wordnet.synsets("tree")
    except LookupError:
        raise RecipeError(f"synonym_wordnet: nltk has no WordNet on this machine; {advice}") from None
    return lambda word, other: bool(set(wordnet.synsets(word)) & set(wordnet.synsets(other)))


def _can_be_mapped(word: str) -> bool:
    return word.isalpha() and len(word) >= SHORTEST and word not in PROTECTED
