"""Cleaning of captions as a declared list of steps; each is counted, and its result is checked.

A step takes captions to captions: ``lowercase``, ``nfkc``, ``ascii``, ``collapse-spaces`` rewrite one,
``length 5-20`` and ``drop-degenerate`` leave some out, ``dedupe`` leaves out what an image says twice,
``synonyms`` (:mod:`scst.data.preparation.synonyms`) maps rare words, and
``package.module:function`` is the user's own. After every step the words must still be the captions' words: a
published run trained on cluster ids ("0 1") that such a step had left in place of words, and noticed when its
BLEU was 0.
"""

import importlib
import logging
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rewards.scorers.text import words
from scst.errors import DataError, RecipeError

logger = logging.getLogger(__name__)

Captions = list[list[str]]
"""Image-major."""
Cleaned = list[list[str | None]]
"""The same shape; None where a caption is left out."""
CaptionStep = Callable[[Captions], Cleaned]

LEAST_KNOWN = 0.95  # share of words that the captions had before a step; spelling steps may coin a few
LEAST_VOCABULARY = 0.3  # share of the distinct words that a rewriting step must leave
FEWEST_TO_JUDGE = 20  # distinct words; the share of fewer says nothing
SHOWN_EXAMPLES = 5
LONGEST_CAPTION = 100  # words; above it is not one sentence about an image
PUNCTUATION = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
LENGTH = re.compile(r"length (\d{1,6})-(\d{1,6})")
STUTTER = re.compile(r"\b(\w+)(?:\W+\1\b){2,}", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """A named cleaning step; ``rewrites``: it may change words, and does not only leave captions out."""

    name: str
    apply: CaptionStep
    rewrites: bool = True
    least_known: float = LEAST_KNOWN


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        name: as declared.
        captions: how many are left.
        changed: how many are written otherwise now.
        dropped: how many were left out.
        vocabulary: distinct words that are left.
        examples: (before, after) of up to five distinct captions; ``""`` after for one left out.
    """

    name: str
    captions: int
    changed: int
    dropped: int
    vocabulary: int
    examples: list[tuple[str, str]]


def clean_captions(captions: Captions, steps: Sequence[Step]) -> tuple[Captions, list[StepReport]]:
    """Apply steps in order.

    Args:
        captions: of N images; N lists come back, some of them perhaps empty.
        steps: of :func:`parse_steps`.

    Raises:
        DataError: a step leaves no caption, or words that the captions did not have.
    """
    reports = []
    for step in steps:
        cleaned = [
            [text if text and text.strip() else None for text in group] for group in step.apply(captions)
        ]
        after = [[text for text in group if text is not None] for group in cleaned]
        check_words(step, captions, after)
        reports.append(_report(step, captions, cleaned))
        captions = after
    return captions, reports


def parse_steps(entries: Sequence[str], synonyms: CaptionStep | None = None) -> list[Step]:
    """Steps from their declaration.

    Args:
        entries: such as ``["lowercase", "length 5-20", "my_module:function"]``.
        synonyms: what ``synonyms`` does; it needs an embedding of words and so comes from outside.

    Raises:
        RecipeError: a step is not known or cannot be imported.
    """
    return [_parse(str(entry).strip(), synonyms) for entry in entries]


def _parse(entry: str, synonyms: CaptionStep | None) -> Step:
    if entry in REWRITES:
        return Step(entry, _each(REWRITES[entry]))
    if entry == "dedupe":
        return Step(entry, _without_repeats, rewrites=False)
    if entry == "drop-degenerate":
        return Step(entry, _only(lambda caption: degenerate_kind(caption) is None), rewrites=False)
    if entry.startswith("length"):
        least, most = _bounds(entry)
        return Step(entry, _only(lambda caption: least <= len(words(caption)) <= most), rewrites=False)
    if entry == "synonyms" and synonyms is not None:
        return Step(entry, synonyms, least_known=1.0)
    if ":" in entry:
        return Step(entry, _each(_imported(entry)))
    raise RecipeError(
        f"cleaning: unknown step {entry!r}; known are {', '.join(REWRITES)}, length MIN-MAX, "
        "drop-degenerate, dedupe, synonyms, and package.module:function (caption -> caption or None)"
    )


def _bounds(entry: str) -> tuple[int, int]:
    found = LENGTH.fullmatch(entry)
    if not found or int(found[1]) > int(found[2]):
        raise RecipeError(f"cleaning: expected `length MIN-MAX` in words, such as length 5-20; got {entry!r}")
    return int(found[1]), int(found[2])


def _imported(entry: str) -> Callable[[str], str | None]:
    module, _, name = entry.partition(":")
    try:
        imported = importlib.import_module(module)
        function = getattr(imported, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"cleaning: {entry!r} cannot be imported: {error}") from error
    if not callable(function):
        raise RecipeError(f"cleaning: {entry!r} is no function but a {type(function).__name__}")
    logger.warning("cleaning %r runs code of %s", entry, getattr(imported, "__file__", None) or module)
    return function


def ascii_caption(caption: str) -> str:
    """The caption in ASCII: without accents, with plain punctuation, without any other character."""
    plain = unicodedata.normalize("NFKD", caption.translate(PUNCTUATION))
    return plain.encode("ascii", "ignore").decode()


def collapse_spaces(caption: str) -> str:
    """Single spaces between words, none around them."""
    return " ".join(caption.split())


REWRITES: dict[str, Callable[[str], str]] = {
    "lowercase": str.lower,
    "nfkc": lambda caption: unicodedata.normalize("NFKC", caption),
    "ascii": ascii_caption,
    "collapse-spaces": collapse_spaces,
}


def degenerate_kind(caption: str) -> str | None:
    """Why a caption describes nothing, None when it does."""
    if not any(character.isalpha() for character in caption):
        return "no letters"
    if len(words(caption)) < 2:
        return "a single word"
    if STUTTER.search(caption):
        return "a word three times in a row"
    return f"over {LONGEST_CAPTION} words" if len(words(caption)) > LONGEST_CAPTION else None


def vocabulary(captions: Iterable[Sequence[str]]) -> set[str]:
    """Every word of image-major captions."""
    return {word for group in captions for caption in group for word in words(caption)}


def check_words(step: Step, before: Captions, after: Captions) -> None:
    """Refuse what a step made, if it is not made of the captions' words.

    Words are compared without case and accents, so that a step may change those.

    Raises:
        DataError: nothing is left, too many words are new, or a rewriting step leaves too few distinct ones.
    """
    if not any(after):
        raise DataError(
            f"cleaning step {step.name!r} leaves no caption; the first one was {_first(before)!r}"
        )
    if not step.rewrites:
        return
    known = {_folded(word) for word in vocabulary(before)}
    left = [_folded(word) for group in after for caption in group for word in words(caption)]
    foreign = sorted({word for word in left if word not in known})
    share = sum(word in known for word in left) / max(1, len(left))
    if share < step.least_known:
        raise DataError(
            f"cleaning step {step.name!r} writes words that no caption had: {share:.0%} of its words are "
            f"theirs, expected at least {step.least_known:.0%}. New are {', '.join(foreign[:8])}; "
            f"{_first(before)!r} became {_first(after)!r}. Are these words, or their ids?"
        )
    if len(set(left)) < LEAST_VOCABULARY * len(known) and len(known) >= FEWEST_TO_JUDGE:
        raise DataError(
            f"cleaning step {step.name!r} leaves {len(set(left))} of {len(known)} distinct words, under "
            f"{LEAST_VOCABULARY:.0%}: {_first(before)!r} became {_first(after)!r}"
        )


def _folded(word: str) -> str:
    return ascii_caption(word).lower().strip(string.punctuation) or word


def _first(captions: Captions) -> str:
    return next((caption for group in captions for caption in group), "")


def _each(rewrite: Callable[[str], str | None]) -> CaptionStep:
    return lambda captions: [[rewrite(caption) for caption in group] for group in captions]


def _only(keeps: Callable[[str], bool]) -> CaptionStep:
    return _each(lambda caption: caption if keeps(caption) else None)


def _without_repeats(captions: Captions) -> Cleaned:
    return [[text if text not in group[:i] else None for i, text in enumerate(group)] for group in captions]


def _report(step: Step, before: Captions, cleaned: Cleaned) -> StepReport:
    pairs = [
        pair
        for old, new in zip(before, cleaned, strict=True)
        for pair in zip(old, new, strict=True)
        if pair[0] != pair[1]
    ]
    left = [[text for text in group if text is not None] for group in cleaned]
    dropped = sum(new is None for _, new in pairs)
    examples = dict.fromkeys((old, new or "") for old, new in pairs)
    return StepReport(
        name=step.name,
        captions=sum(map(len, left)),
        changed=len(pairs) - dropped,
        dropped=dropped,
        vocabulary=len(vocabulary(left)),
        examples=list(examples)[:SHOWN_EXAMPLES],
    )
