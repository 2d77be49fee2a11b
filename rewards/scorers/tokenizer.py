"""One caption tokeniser for rewards and validation: the words that CIDEr counts.

Pure Python, no Java. For a caption by itself it gives what pycocoevalcap gives through Stanford CoreNLP 3.4.1
(``PTBTokenizer -preserveLines -lowerCase``, then without pycocoevalcap's list of punctuation). It was written
from the program's answers to made-up and real captions, not from its source; tests hold the two together.

It differs where

- the Java looks into the next caption or loses count of lines: here a line break inside a caption is a blank,
  and the point of an initial or abbreviation that ends a caption ("gate b.") does not depend on the next one;
- something stands in a caption that captions do not hold: markup tags (``<eos>`` is three words here, so that
  no caption can utter the end-of-sequence word), web addresses, phone numbers, file names ("1.c"), smileys
  beyond ``:-)``, HTML entities beyond `_ENTITIES` or within an e-mail address, soft hyphens;
- letters came into Unicode after 2010 or belong to scripts whose vowel signs the Java takes for blanks, or
  where it folds case in its own way (capital sigma before a digit, a hyphen or another script; 'tİs).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

NAME = "ptb"
"""Stands in metric signatures and in the fingerprint of document frequencies."""

_ABBREVIATIONS = """
    adj adm adv assoc asst atty attys ave brig capt cf cmdr col cpl dept dr drs elec ens ft gen gov govs hon
    lt maj messrs mfg mlle mme mr mrs ms msgr mt natl pres prof profs pvt rep reps rev sen sens sgt spc st ste
    supt treas vs
"""  # keep their point
_ENDINGS = """
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla
    fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn
    ph.d plc pte pty rd rt sep sept sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wyo
"""  # keep it even before a letter: "co.b" is two words, "st.b" is one
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"  # the same, with a capital: "Wash. is"
_BEFORE_DIGITS = "no nos fig figs op pp ca art"  # keep it before a digit: "no. 5"
_STARTERS = """
    A An The It In At If So Now We He She They This That These There Here Her Our Their You One Some Many But
    As After When While What Then About Other However Since Such More
"""  # begin a sentence, and so end the one before: "gate b. The road"
_SPLIT = "cannot gonna wanna gotta gimme lemme"  # can not, gon na, ...

# The rules read a caption's shape: beyond ASCII a letter is "é" there, a mark "\u0301", a digit "٣", a symbol
# that is a word by itself "°", and what separates words without being a blank "\0". At each place the
# longest match decides, the first of equals. Where a rule has a group, the group is the word; the rest of the
# match counts for its length only.
_A = "[a-z0-9]"
_L = "[a-zé]"
_T = "[a-zé0-9٣]"
_D = "[0-9٣]"
_WORD = "[a-zé\u0301][a-zé\u03010-9٣]*"
_PART = f"(?:[dlo]['’‘`]{_T})?{_T}+"  # of a compound
_SIDE = f"{_A}+(?:-[a-z]+){{0,2}}"  # of a slash
_ACRONYM = r"(?:[a-z]\.){2,}"
_NUMBER = f"(?:{_D}*(?:[.,:٫٬]{_D}+)+|{_D}+)"
_COMPOUND = rf"{_A}[a-z0-9.,]*+(?:-(?:{_ACRONYM}|{_A}+))+"
_ADDRESS = r"""[a-z0-9][^ \t"<>|(){}]*@[^ \t"<>|(){}.]+(?:\.[^ \t"<>|(){}.]+)*>?"""
_AT_POINT = r"(?=[a-z]+\.)"  # spares most words the list of abbreviations
_POINT = r"(?:\.(?=[,;:]))?"  # a point before another mark stays: "roofs., trees"


def _any(words: str) -> str:
    return "|".join(map(re.escape, words.split()))


_FROM_LETTERS_AND_DIGITS = rf"""
    ({_WORD}(?:[.!?]{_WORD})*)['’](?:[dms]|re|ve|ll)            # river|'s
    ([a-z]*[a-mo-z])n['’‘`]t                                    # do|n't
    (n['’‘`]t)(?![a-z])
    (can)not|(gon|wan)na|(got)ta|(gim|lem)me
    {_AT_POINT}((?:{_any(_ENDINGS)})\.)-?.?
    {_AT_POINT}((?-i:(?=[A-Z]))(?:{_any(_CAPITALISED)})\.)-?.?
    {_AT_POINT}(?:{_any(_ABBREVIATIONS)})\.
    {_AT_POINT}((?:{_any(_BEFORE_DIGITS)})\.)\s?{_D}
    {_WORD}{_POINT}                                             # roof
    {_PART}(?:[-_‐]{_PART})*{_POINT}                            # 20th-century  farm_land  o'clock  d'or
    {_COMPOUND}{_POINT}                                         # 5.5-inch  u.s.-based  non-u.s.
    {_WORD}(?:[.!?]{_WORD})+{_POINT}                            # roofs.trees: sentences without a blank
    {_SIDE}(?:\\?/{_SIDE}){{1,2}}                               # white/gray  and/or  1/2
    (?:{_D}{{1,4}}[- ])?{_D}{{1,4}}\\?[/⁄]{_D}{{1,4}}           # 5-1/2  5 1/2
    [0-9]{{1,2}}[-/][0-9]{{1,2}}[-/][0-9]{{2,4}}                # 5/10-20
    {_NUMBER}                                                   # 1,000.5  12:30
    [a-z]\.(?!\s+(?-i:{_any(_STARTERS + _STARTERS.upper())}|M[RSrs]\.)(?:\s|$))  # b.
    {_ACRONYM}|non-u\.s
    {_L}+[aeiouy]['’‘`](?:[aeiou]|(?-i:[A-Z])){_L}*             # ma'am
    (?:n|(?-i:[A-HJ-XZ]))['’‘`]{_L}{_L}+                        # D'Angelo
    (?:[djl]|ol)['’]                                            # ol' man
    (y['’]){_L}                                                 # y'|all
    (?-i:[A-Z]+(?:[&+][A-Z]+)+){_POINT}                         # AT&T
    (?-i:[A-Z]+)\$                                              # US$
    c\+\+|[cf]\#
    {_ADDRESS}
"""
_FROM_OTHERS = rf"""
    '(?:[dms]|re|ve|ll)(?![a-z])                                # clitics by themselves
    ’(?:[dms]|re|ve|ll)
    ('t)(?:is|was)
    ['’]n['’]|'n(?=\s|$)|’n                                     # rock 'n' roll
    ['’](?:em|till?|cause)
    ['’][2-9]0s|['’][0-9][0-9](?=\s|$)                          # '90s  '90
    [‘’“”«»‹›`]{{1,2}}|''
    [-+]?{_NUMBER}
    -----+|---?-?
    \.{{3,5}}|\.\s\.\s\.(?:\s\.)?
    [!?]+|\*+|\#+|@+|_+|⁺?†+|⁺?‡+|„+|<<|>>|(?:\\\*)+
    @[a-z_][a-z0-9_]*|\#[a-zé\u0301]+
    [<>]?[:;=](?:[-'*]|(?-i:o))?(?:[][()@dp|\\{{]|(?-i:O))(?!{_A})  # :-)
    <{_ADDRESS}
    \S
"""


# Two rules read on for as far as the caption goes, only to find at its end that they do not match. Tried at
# every place of "a,a,a,a," that takes quadratic time. Therefore they are tried only before the place that
# they need: the group of these patterns (the last such place), looked up once for a run of characters.
_AHEAD = {
    _COMPOUND + _POINT: r"[a-z0-9.,]*+((?=-[a-z0-9]))?",
    _ADDRESS: (_AT := r"""<?(?:[^ \t"<>|(){}]*(@)(?=[^ \t"<>|(){}.]))?[^ \t"<>|(){}]*"""),
    f"<{_ADDRESS}": _AT,
}


class _Rule(NamedTuple):
    """A pattern of words, and what finds the place without which it cannot match."""

    words: re.Pattern[str]
    ahead: re.Pattern[str] | None


def _compiled(rules: str) -> list[_Rule]:
    found = []
    for line in rules.strip().splitlines():
        rule = line.split("  #")[0].strip()
        ahead = re.compile(_AHEAD[rule], re.IGNORECASE) if rule in _AHEAD else None
        found.append(_Rule(re.compile(rule, re.IGNORECASE), ahead))
    return found


_RULES = {True: _compiled(_FROM_LETTERS_AND_DIGITS), False: _compiled(_FROM_OTHERS)}
_BLANKS = re.compile(r"[\s\0]*")
_EASY = re.compile(rf"(?:(?!(?:{_any(_SPLIT)})\b)[a-z]+(?:,?\s+|$))+", re.IGNORECASE)  # no rule takes more

_ENTITIES = {"amp": "&", "lt": " < ", "gt": " > ", "quot": '"', "apos": "'", "nbsp": " "}
_ENTITIES |= {"mdash": "—", "ndash": "–"}
_ENTITY = re.compile(f"&({'|'.join(_ENTITIES)});", re.IGNORECASE)

_DROPPED = frozenset(["'", "''", "`", "``", ".", "...", ",", ";", ":", "?", "!", "-", "--"])
"""pycocoevalcap's punctuation. The brackets on its list are in upper case: they never match "-lrb-"."""

_SPELLED = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"£": "#", "€": "$", "¤": "$", "₠": "$", "¢": "cents"},
    **dict.fromkeys(["---", "----", "–", "—", "―"], "--"),
    **dict.fromkeys(["....", ".....", "…"], "..."),
    **dict.fromkeys(['"', "‐", "‑", "֊", "٫", "٬"], "-"),  # dropped, whatever they are
}
_QUOTES = str.maketrans(
    {"‘": "`", "‛": "`", "‹": "`", "’": "'", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''"}
)
_SPELLED_BY_QUOTES = re.compile(r"[‘’‛“”«»‹›`]+|’(?:[dms]|re|ve|ll)|n[’‘]t")

_SHAPES_BY_HAND = {
    **{character: character for character in "‘’“”«»‹›–…‐٫٬⁄„⁺"},
    **{"‛": "‘", "—": "–", "―": "–", "‑": "‐", "֊": "‐", "‚": "„", "‟": "„", "⁻": "⁺", "₊": "⁺", "₋": "⁺"},
    **{"₠": "°", "₤": "°", "€": "°"},
    **dict.fromkeys("․‥‧‼‽\u0482", "\0"),
}
_SYMBOLS = ((0, 0x8FF), (0x2016, 0x2042), (0x2070, 0x209F), (0x2100, 0x2BFF), (0xFF00, 0xFFFF))


class _Shapes(dict):
    """Code point to shape, for `str.translate`; fills itself."""

    def __missing__(self, code: int) -> str:
        shape = _SHAPES_BY_HAND.get(chr(code)) or _shape(chr(code))
        if code <= 0xFFFF:  # 65,536 entries at the most, whatever the captions are
            self[code] = shape
        return shape


def _shape(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character.isspace():
        return {" ": " ", "\u00a0": " ", "\t": "\t"}.get(character, "\u3000")
    if code < 128 and category != "Cc":
        return character
    if category == "Nd":
        return "٣"
    if code > 0xFFFF:
        return "\0"
    if category[0] == "L":
        return "é"
    if (category in {"Mn", "Mc"} and code < 0xB00) or (category in {"Sk", "Sm"} and 0x2C2 <= code <= 0x3F6):
        return "\u0301"
    raised = unicodedata.decomposition(character)[:4] if category == "No" else ""
    if raised in {"<sup", "<sub"}:
        return "†" if raised == "<sup" else "‡"
    if category[0] in "PS" or category == "No":
        return "°" if any(first <= code <= last for first, last in _SYMBOLS) else "\0"
    return "\0"


_SHAPES = _Shapes()

# Letters, commas and a final point, which no rule could make more of: nearly every caption.
_PLAIN = re.compile(r"([A-Za-z, ]*+)(?:(?<=[A-Za-z]{2}|[A-Za-z, ][, ])\.)? *")
_LONGEST_KEPT = 1000
_NOT_PLAIN = frozenset(_SPLIT.split() + _ABBREVIATIONS.split() + _ENDINGS.split() + _CAPITALISED.split())


def cached_by_caption(function: Callable[[str], tuple[str, ...]]) -> Callable[[str], tuple[str, ...]]:
    """Keep the answers for the last 65,536 captions: a step asks for the same ones several times.

    Longer texts than captions are (`_LONGEST_KEPT`) are worked out anew, so that memory stays bounded.
    """
    kept = functools.lru_cache(maxsize=1 << 16)(function)

    @functools.wraps(kept)
    def answer(caption: str) -> tuple[str, ...]:
        return kept(caption) if len(caption) <= _LONGEST_KEPT else function(caption)

    return answer


@cached_by_caption
def tokenize(caption: str) -> tuple[str, ...]:
    """Lower-case words of a caption, punctuation dropped.

    The time is linear in the caption's length, whatever it holds.

    Args:
        caption: any text; line breaks count as blanks.

    Returns:
        The words, e.g. ``("the", "river", "'s", "bank")``; empty for a caption without words.
    """
    plain = _PLAIN.fullmatch(caption)
    if plain:
        words = plain[1].lower().replace(",", " ").split()
        if _NOT_PLAIN.isdisjoint(words):
            return tuple(words)
    return _tokenize_by_rules(caption)


def _tokenize_by_rules(caption: str) -> tuple[str, ...]:
    text = caption if caption.isprintable() else " ".join(caption.splitlines()).strip()
    text = text.replace("\u00ad", "")
    if "&" in text:
        text = _ENTITY.sub(lambda match: _ENTITIES[match[1].lower()], text)
    shape = text.translate(_SHAPES)
    words: list[str] = []
    runs: _Runs = {}
    place = _BLANKS.match(shape).end()  # type: ignore[union-attr]  # matches everywhere
    while place < len(shape):
        easy = _EASY.match(shape, place)
        if easy:
            words += easy[0].lower().replace(",", " ").split()
            end = easy.end()
        else:
            end = _end_of_word(shape, place, runs)
            words += _written(text[place:end].lower())
        place = _BLANKS.match(shape, end).end()  # type: ignore[union-attr]
    return tuple(words)


_Runs = dict[re.Pattern[str], tuple[int, int]]
"""What `_Rule.ahead` found last: the place that the rule needs (-1: none), and where the run ends."""


def _end_of_word(shape: str, place: int, runs: _Runs) -> int:
    longest, end = place, place
    for words, ahead in _RULES[shape[place].isalnum() or shape[place] == "\u0301"]:
        if ahead is not None and place >= _needed_place(ahead, shape, place, runs):
            continue
        match = words.match(shape, place)
        if match and match.end() > longest:
            longest, end = match.end(), match.end(match.lastindex or 0)
    return end


def _needed_place(ahead: re.Pattern[str], shape: str, place: int, runs: _Runs) -> int:
    """The place that a rule needs; the same for all places of a run of characters, so that it is kept."""
    needed, end = runs.get(ahead, (-1, -1))
    if place >= end:
        match = ahead.match(shape, place)
        assert match is not None, "these patterns match everywhere"
        needed, end = runs[ahead] = match.start(1), match.end()
    return needed


def _written(word: str) -> list[str]:
    """The words that Java and pycocoevalcap leave of one: spelled in ASCII, or nothing."""
    word = _SPELLED.get(word, word)
    if _SPELLED_BY_QUOTES.fullmatch(word):
        word = word.translate(_QUOTES)
    elif word[0] in "<>:;=":
        word = word.replace("(", "-lrb-").replace(")", "-rrb-")
    elif word[0] == ".":
        word = word.replace(" ", "")
    return [part for part in word.split() if part not in _DROPPED]
