"""The Stanford PTB tokenizer itself, through Java: what ``rewards.scorers.tokenizer`` must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from rewards.scorers.java import find_java, run_java

PTB_JAR = Path(ptbtokenizer.__file__).resolve().with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)


def ptb_tokenize(captions: Sequence[str], *, timeout_s: float | None = None) -> list[str]:
    """Lower-cased PTB tokens of every caption, joined by spaces, punctuation removed.

    Equal to pycocoevalcap's ``PTBTokenizer``, whose jar and punctuation list it uses, but through standard
    input (nothing is written into site-packages), in UTF-8 whatever the locale, and with line breaks inside a
    caption turned into spaces (there they shift every following caption).

    Args:
        captions: N captions, possibly empty.
        timeout_s: seconds to wait; by default two minutes and 1 ms per caption.

    Raises:
        RewardError: Java is missing, fails or hangs.
    """
    if not captions:
        return []
    text = "".join(f"{_one_line(caption)}\n" for caption in captions)
    lines = _run_ptb(text, timeout_s or 120 + 0.001 * len(captions)).split("\n")[:-1]
    assert len(lines) == len(captions)
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in lines]


def _one_line(caption: str) -> str:
    return " ".join(caption.splitlines()).strip()


def _run_ptb(text: str, timeout_s: float) -> str:
    command = [find_java(), "-Dfile.encoding=UTF-8", "-cp", PTB_JAR.name]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    return run_java("PTB tokenizer", command, PTB_JAR.parent, timeout_s, text.encode("utf-8", "replace"))
