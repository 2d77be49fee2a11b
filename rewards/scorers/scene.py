"""Whether a caption names what is in the scene, and how many: entity recall and count accuracy.

The share of the references' objects that a caption names is among the rewards that helped most in a published
remote-sensing system (github.com/zhu-xlab/SCST_4_RS: "object proportion"), where a language model parses
every caption. Here rules and word lists do it, without a model; they were made on the words of RSICD, UCM-,
Sydney- and NWPU-Captions. Not covered are synonyms (plane, airplane), misspellings, nouns that are adjectives
or verbs elsewhere (square, runs), negation ("no cars").

- **Entity**: a noun, in the singular. A word is one unless it stands in one of the lists below or ends as
  adverbs and participles do (-ly, -ing, -ed), but for listed exceptions.
- **Entities of an image**: those that two or more references name; with one reference, all of them. Each
  weighs as many references as name it, as content units in the pyramid method (Nenkova and Passonneau 2004).
- **Count**: a number, "a" (1) or a vague quantifier ("some", "many", "lots of": 3 or more), and the head of
  the noun phrase after it. A bare plural states none.
- **Count of an image's entity**: the one that more than half of the references that state one agree on.

Nothing can be judged of an image whose references share no entity, and no count of a caption that states none
which the references know: the values are None.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rewards.scorers.encoders import check_references
from rewards.scorers.tokenizer import tokenize

MANY = math.inf
"""A vague count: ``LEAST_MANY`` or more."""
LEAST_MANY = 3

_NUMBERS = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5}
_NUMBERS |= {"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "dozen": 12}
_NUMBERS |= {"pair_of": 2, "couple_of": 2}
_VAGUE = """
    some several many few numerous various multiple countless
    lot_of lots_of number_of plenty_of dozens_of tens_of hundreds_of thousands_of
"""
_COUNTS = _NUMBERS | dict.fromkeys(_VAGUE.split(), MANY)
_QUANTITY = re.compile(r"\b(pair|couple|lots?|number|plenty|dozens|tens|hundreds|thousands) of\b")

# End a noun phrase and are no entities: the closed classes of English, and verbs of captions.
_FUNCTION_WORDS = """
    the this that these those there here it its he she they them their we our you your who whose which
    what and or but nor so if because while when where as than of in on at by to from with without into
    onto up down off out over under above below between among amid around about along alongside across
    through against behind beside besides beyond near next before after inside outside toward towards upon
    within for like via except per not no n't is are was were be been being am has have had do does did
    can could may might must will would should also again away aside apart together else etc such only
    just all each every any another other others either neither much more most less how why then now once
    twice go goes come comes see sees seen make makes made lie lies lay lain sit sits stand stands stood
    run runs pass passes cross crosses surround surrounds connect connects consist consists contain
    contains cover covers divide divides separate separates form forms compose composes constitute
    constitutes flow flows grow grows grew grown flourish locate locates include includes occupy occupies
    own owns look looks seem seems appear appears lead leads link links extend extends stretch stretches
    distribute distributes scatter intersect intersects throw throws take takes give gives get gets keep
    keeps put puts show shows shown float floats beat stop stops vary belong arrange know known become
    becomes built drawn blow emit gather gathers spread spreads set sets
"""
# May stand between a count and its noun, and are no entities: colours, sizes, shapes, positions, qualities.
_MODIFIERS = """
    white black red green blue yellow brown gray grey orange purple pink khaki tan cyan beige turquoise
    emerald silver golden dark light deep pale bright colorful large big huge small little tiny medium
    long short tall high low wide broad narrow vast great thick thin full half main different same similar
    square rectangular circular round oval triangular polygonal irregular regular rectangle straight curvy
    crooked zigzag flat uneven open empty vacant free bare bald barren dense sparse lush verdant wild dry
    wet clear busy quiet beautiful magnificent neat tidy orderly parallel vertical horizontal diagonal
    central middle left right upper lower front back top bottom outer inner outdoor indoor north south
    east west old new modern simple complex complicated normal special smooth rough rugged steep double
    very quite almost nearly mostly even still well two-way open-air mobile thermal public common typical
    desolate withered prosperous peaceful mountainous grassy sandy rocky dirty clean close nearby adjacent
    endless broken unbroken artificial economic symmetrical distinctive wavy turbid good total hot
"""
# Scenes rather than things: entities, but never what a count counts.
_SCENES = ("residential", "industrial", "commercial", "urban", "rural", "agricultural")
# Nouns that say nothing of what is there.
_VAGUE_NOUNS = """
    area region zone place space site position part piece side number amount kind type variety style sort
    size shape form color colour middle center centre corner edge end top bottom front rest whole thing
    object item way direction distance order row column line rank circle ring oval square rectangle
    triangle group series pair couple set picture image photo view scene background nothing something
    everything hand figure letter ten hundred thousand distribution pattern
"""
_ING_NOUNS = """
    building dwelling parking swimming crossing clearing marking housing ceiling awning spring string wing
    farming shipping shopping mining landing piping
"""
_ED_NOUNS = "bed seabed riverbed flowerbed shed watershed seed weed reed speed"
_NO_NOUNS = frozenset(_FUNCTION_WORDS.split()) | _COUNTS.keys()
_ADJECTIVES = frozenset(_MODIFIERS.split())
_NOUNS_BY_EXCEPTION = frozenset((_ING_NOUNS + _ED_NOUNS).split())
_NOUNS_OF_NOTHING = frozenset(_VAGUE_NOUNS.split())

_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot"}
_IRREGULAR |= {"leaves": "leaf", "shelves": "shelf", "buses": "bus", "campuses": "campus", "gases": "gas"}
_INVARIANT = ("gas", "lens", "canvas", "series", "species")
_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*")


@lru_cache(maxsize=1 << 14)
def singular(word: str) -> str:
    """Singular of a lower-case noun by the rules of English spelling; a singular stays as it is."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word in _INVARIANT or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "ches", "shes", "xes")) else word[:-1]


@lru_cache(maxsize=1 << 14)
def entity(word: str) -> str | None:
    """The singular of a noun, None for any other token; see the module for what counts as a noun."""
    if word in _SCENES:
        return word
    noun = singular(word)
    if not _WORD.fullmatch(word) or word in _NO_NOUNS or noun in _NOUNS_OF_NOTHING or _is_modifier(word):
        return None
    return noun


def entities(caption: str) -> frozenset[str]:
    """Entities that a caption names, e.g. ``{"plane", "runway"}``."""
    return frozenset(noun for word in _words(caption) if (noun := entity(word)))


def stated_counts(caption: str) -> dict[str, set[float]]:
    """Entities that a caption counts, each with all that it says of their number, such as ``MANY``.

    "two white planes and some cars" gives ``{"plane": {2}, "car": {MANY}}``.
    """
    words = _words(caption)
    counts: dict[str, set[float]] = {}
    for i, word in enumerate(words):
        count = _count(word)
        head = _head(words, i + 1) if count else None
        if head:
            counts.setdefault(head, set()).add(count)
    return counts


def compatible(first: float, second: float) -> bool:
    """Whether two counts can both be right."""
    return first == second or (max(first, second) == MANY and min(first, second) >= LEAST_MANY)


@dataclass(frozen=True)
class SceneFacts:
    """What the references of an image agree on.

    Attributes:
        weights: entity -> number of references that name it.
        counts: entity -> its count, for those that have one.
    """

    weights: dict[str, int]
    counts: dict[str, float]

    def recall(self, caption: str) -> float | None:
        """Weighted share of the entities that a caption names; None when there are none."""
        if not self.weights:
            return None
        named = self.weights.keys() & entities(caption)
        return sum(self.weights[noun] for noun in named) / sum(self.weights.values())

    def count_accuracy(self, caption: str) -> float | None:
        """Share of correct ones among the entities that both sides count; None when there are none.

        A caption that contradicts itself ("two planes ... three planes") is wrong.
        """
        judged = {noun: stated for noun, stated in stated_counts(caption).items() if noun in self.counts}
        right = [all(compatible(n, self.counts[noun]) for n in stated) for noun, stated in judged.items()]
        return sum(right) / len(right) if right else None


@lru_cache(maxsize=1 << 14)
def scene_facts(references: tuple[str, ...]) -> SceneFacts:
    """Entities and counts of an image from its references."""
    named = Counter(noun for text in references for noun in entities(text))
    weights = {noun: n for noun, n in named.items() if n >= min(2, len(references))}
    votes: dict[str, Counter[float]] = {noun: Counter() for noun in weights}
    for text in references:
        for noun, stated in stated_counts(text).items():
            if noun in votes and len(stated) == 1:  # a text that contradicts itself has no vote
                votes[noun].update(stated)
    best = {noun: counter.most_common(1)[0] for noun, counter in votes.items() if counter}
    counts = {noun: count for noun, (count, n) in best.items() if 2 * n > votes[noun].total()}
    return SceneFacts(weights, counts)


@dataclass(frozen=True)
class SceneScores:
    """Scores of N captions.

    Attributes:
        per_caption: N values of 0 to 1, None where nothing can be judged.
    """

    per_caption: list[float | None]

    @property
    def value(self) -> float:
        """Mean over the captions that can be judged; NaN when none can."""
        judged = [value for value in self.per_caption if value is not None]
        return sum(judged) / len(judged) if judged else math.nan


def entity_recall(captions: Sequence[str], references: Sequence[Sequence[str]]) -> SceneScores:
    """How much of what the references agree on is named: see :meth:`SceneFacts.recall`.

    Args:
        captions: N texts; an empty one scores 0.
        references: N lists of one or more human captions.

    Raises:
        RewardError: a caption has no references, or the numbers differ.
    """
    return _scores("entity_recall", SceneFacts.recall, captions, references)


def count_accuracy(captions: Sequence[str], references: Sequence[Sequence[str]]) -> SceneScores:
    """How many of the counted things are counted right: see :meth:`SceneFacts.count_accuracy`.

    Read it with the number of judged captions: a system that counts nothing is never wrong. Arguments and
    errors as of :func:`entity_recall`.
    """
    return _scores("count_accuracy", SceneFacts.count_accuracy, captions, references)


def _scores(
    name: str,
    judge: Callable[[SceneFacts, str], float | None],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> SceneScores:
    check_references(name, captions, references)
    pairs = zip(captions, references, strict=True)
    return SceneScores([judge(scene_facts(tuple(group)), caption) for caption, group in pairs])


def _words(caption: str) -> list[str]:
    """Words of a caption, "lots of" and its like as one word, ``lots_of``."""
    return _QUANTITY.sub(r"\1_of", " ".join(tokenize(caption))).split()


def _is_modifier(word: str) -> bool:
    """Whether a word may stand between a count and its noun without being one."""
    last = word.rpartition("-")[2]  # yellow-brown is a colour
    if word in _ADJECTIVES or last in _ADJECTIVES or word in _SCENES:
        return True
    return last.endswith(("ly", "ing", "ed")) and last not in _NOUNS_BY_EXCEPTION


def _count(word: str) -> float:
    """The number that a word states, 0 for none."""
    digits = word.replace(",", "")
    return float(digits) if digits.isdecimal() else _COUNTS.get(word, 0)


def _head(words: Sequence[str], start: int) -> str | None:
    """The noun that the noun phrase from ``start`` on is about: the last of its first run of nouns."""
    noun = None
    for position in range(
        start, len(words)
    ):  # not a slice: a caption of counts only would be copied for each
        word = words[position]
        found = None if word in _SCENES else entity(word)
        if found is None and (noun or not _is_modifier(word)):
            return None if singular(word) in _NOUNS_OF_NOTHING else noun  # three baseball areas: no baseballs
        noun = found or noun
    return noun
