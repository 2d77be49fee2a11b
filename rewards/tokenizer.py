"""One caption tokeniser for rewards and validation: the words that CIDEr counts.

Pure Python, no Java. It follows what pycocoevalcap does with Stanford CoreNLP's ``PTBTokenizer -lowerCase``
and its list of dropped punctuation; a test holds the two against each other on real captions.
"""

from __future__ import annotations

import functools
import re

NAME = "ptb"
"""Stands in metric signatures and in the fingerprint of document frequencies."""

_TOKEN = re.compile(
    r"""
      (?:(?<![^\W_])[a-z]\.)+               # u.s.  and initials: farm b.
    | -[lr][rsc]b-                          # brackets, as the Penn Treebank writes them
    | \d+(?:[.,:/]\d+)+                     # 1,000  3.5  12:30  1/2
    | [^\W_]+(?:[-_/][^\W_]+)*              # words, hyphenated words, white/gray
    | \$ | % | & | \# | @ | \+ | = | / | < | > | \* | \^ | ~ | \| | \\ | _
    """,
    re.VERBOSE,
)
_CONTRACTION = re.compile(r"(?<=[a-z])(n't)\b|(?<=[a-z0-9])('(?:s|m|d|re|ve|ll))\b")
_CLITICS = frozenset({"n't", "'s", "'m", "'d", "'re", "'ve", "'ll"})  # captions that were split before
_BRACKETS = {"(": "lrb", ")": "rrb", "[": "lsb", "]": "rsb", "{": "lcb", "}": "rcb"}
_CHARACTERS = str.maketrans(
    {"’": "'", "‘": " ", "`": " ", "´": " ", "“": " ", "”": " ", '"': " "}
    | {bracket: f" -{name}- " for bracket, name in _BRACKETS.items()}
)
_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
}


@functools.lru_cache(maxsize=1 << 16)
def tokenize(caption: str) -> tuple[str, ...]:
    """Lower-case words of a caption, punctuation dropped.

    Args:
        caption: any text; line breaks count as spaces.

    Returns:
        The words, e.g. ``("the", "river", "'s", "bank")``; empty for a caption without words.
    """
    text = caption.lower().translate(_CHARACTERS)
    words: list[str] = []
    for chunk in _CONTRACTION.sub(lambda match: f" \0{match.group()} ", text).split():
        if chunk.startswith("\0") or chunk in _CLITICS:
            words.append(chunk.removeprefix("\0"))
            continue
        for word in _TOKEN.findall(chunk):
            words.extend(_SPLIT_WORDS.get(word, (word,)))
    return tuple(words)
