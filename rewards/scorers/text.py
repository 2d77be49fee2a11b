"""Faults in the text of captions, counted. Plain Python, because training logs these at every step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rewards.scorers.tokenizer import cached_by_caption, tokenize

# A caption that stops on one of these was not finished. The first line is the list of self-critical.pytorch
# (`bad_endings` in captioning/models/AttModel.py), the second adds those of its captioning/utils/misc.py; the
# others are ours: more conjunctions, prepositions, determiners, auxiliaries. Left out on purpose: beside, by,
# around, inside, through, above, along, behind ..., which are adverbs too and end human captions ("with trees
# beside"): with them 26 % of the Sydney-Captions references would count as broken, without them 0.6 %.
_BAD_ENDINGS = """
    a an the in for at of with before after on upon near to is are am
    this his her that
    and or but nor while which who whose where when as than if because
    from into onto between among under against within without beneath towards toward next
    was were be been being has have had its their these those some several many every
"""
BAD_ENDINGS = frozenset(_BAD_ENDINGS.split())
REPEATED_NGRAM = 3
MAX_CAPTION_CHARACTERS = 20_000
"""A sentence has a hundred. A whole book in place of one would take seconds in every metric."""
_BRACKET = re.compile("-[lr][rsc]b-")  # as the tokeniser spells brackets


def caption_texts(completions: Sequence[Any]) -> list[str]:
    """Captions of completions as TRL passes them: texts, or for conversational prompts lists of messages."""
    return [c if isinstance(c, str) else _content(c[-1]["content"]) for c in completions]


def _content(content: Any) -> str:
    """Text of a message: itself, or joined from its parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def collapse_blanks(caption: str) -> str:
    """The caption with every run of blanks (spaces, tabs, line breaks) as one space, and none at its ends."""
    return " ".join(caption.split())


@cached_by_caption
def words(caption: str) -> tuple[str, ...]:
    """Lower-case words of a caption: the one definition of logs, reports, rewards and data preparation.

    They are the tokens that CIDEr counts (:func:`rewards.scorers.tokenizer.tokenize`), those with a letter or
    a digit in them. A symbol or a bracket is a token but not a word: "with a |" ends on "a", "( ." is empty.
    """
    return tuple(token for token in tokenize(caption) if any(map(str.isalnum, _BRACKET.sub("", token))))


def has_bad_ending(caption: str) -> bool:
    """Whether the last word is an article, preposition, conjunction ... (``BAD_ENDINGS``)."""
    caption_words = words(caption)
    return bool(caption_words) and caption_words[-1] in BAD_ENDINGS


def has_repetition(caption: str) -> bool:
    """Whether a word directly follows itself, or a sequence of three words occurs twice."""
    return repeated_share(caption) > 0


def repeated_share(caption: str) -> float:
    """Share of words that repeat, 0 to 1: a word after itself, three words in a row after the first time."""
    caption_words = words(caption)
    repeats = {i for i, (left, right) in enumerate(pairwise(caption_words), 1) if left == right}
    seen: set[tuple[str, ...]] = set()
    for start in range(len(caption_words) - REPEATED_NGRAM + 1):
        ngram = caption_words[start : start + REPEATED_NGRAM]
        if ngram in seen:
            repeats.update(range(start, start + REPEATED_NGRAM))
        seen.add(ngram)
    return len(repeats) / len(caption_words) if caption_words else 0.0


def bad_ending_rate(captions: Sequence[str]) -> float:
    """Share of captions with a bad ending; 0 for no captions."""
    return _mean([has_bad_ending(caption) for caption in captions])


def repetition_rate(captions: Sequence[str]) -> float:
    """Share of captions that repeat themselves; 0 for no captions."""
    return _mean([has_repetition(caption) for caption in captions])


def empty_rate(captions: Sequence[str]) -> float:
    """Share of captions without a word; 0 for no captions."""
    return _mean([not words(caption) for caption in captions])


def mean_length(captions: Sequence[str]) -> float:
    """Mean number of words; 0 for no captions."""
    return _mean([len(words(caption)) for caption in captions])


def distinct_share(captions: Sequence[str]) -> float:
    """Distinct captions over captions, compared word by word; 0 for no captions."""
    return len({words(caption) for caption in captions}) / len(captions) if captions else 0.0


def vocabulary_size(captions: Sequence[str]) -> int:
    """Number of distinct words in all captions."""
    return len({word for caption in captions for word in words(caption)})


def caption_statistics(captions: Sequence[str]) -> dict[str, float]:
    """All of the above by name: shares in 0-1, ``mean_length`` in words, ``vocabulary_size`` in words."""
    return {
        "bad_ending_rate": bad_ending_rate(captions),
        "repetition_rate": repetition_rate(captions),
        "empty_rate": empty_rate(captions),
        "mean_length": mean_length(captions),
        "distinct_share": distinct_share(captions),
        "vocabulary_size": vocabulary_size(captions),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
