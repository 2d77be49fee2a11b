"""SPICE (Anderson et al. 2016, arXiv:1607.08822): F1 of the objects, attributes and relations in two texts.

The jar comes with pycocoevalcap (AGPL); the Stanford models it parses with do not, and nothing is downloaded
here: :func:`find_spice` says which files to put where. It is run as pycocoevalcap's ``Spice`` runs it, except
that

- nothing is written into site-packages, and no cache of parsed references is kept, whose native library is
  missing on ARM;
- the output of Java is part of error messages, and there is a deadline;
- a Java that is too new is refused before minutes of parsing: the jar writes its results through a JavaScript
  engine that was removed with Java 15, and ends in a NullPointerException without it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.spice import get_stanford_models as pycoco_models
from pycocoevalcap.spice import spice as pycoco_spice

from rewards.errors import RewardError
from rewards.scorers.encoders import check_references
from rewards.scorers.java import find_java, run_java
from rewards.scorers.tokenizer import tokenize

JAR = pycoco_spice.SPICE_JAR
MODELS = tuple(f"{pycoco_models.SPICELIB}/{pycoco_models.JAR}{end}.jar" for end in ("", "-models"))
ARCHIVE = f"{pycoco_models.CORENLP}.zip"
NEWEST_JAVA = 14
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def find_spice(folder: str | Path | None = None) -> Path:
    """The folder of SPICE, after a check that its jars and models are there.

    Args:
        folder: where ``spice-1.0.jar`` and ``lib`` are; by default in pycocoevalcap.

    Raises:
        RewardError: files are missing, or Java is missing or too new; the message says what to put where.
    """
    folder = Path(folder or Path(pycoco_spice.__file__).parent).resolve()
    missing = [name for name in (JAR, *MODELS) if not (folder / name).is_file()]
    if missing:
        raise RewardError(
            f"SPICE: expected {', '.join(missing)} in {folder}, and nothing is downloaded by itself. "
            f"{' and '.join(Path(name).name for name in MODELS)} are in {ARCHIVE} of "
            f"https://nlp.stanford.edu/software/: unpack them into {folder / pycoco_models.SPICELIB}"
        )
    _check_java(find_java())
    return folder


def spice_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    folder: str | Path | None = None,
    timeout_s: float | None = None,
) -> list[float]:
    """SPICE of N captions in 0-1; the corpus value is the mean. A caption without tuples scores 0.

    Args:
        captions: N texts.
        references: N lists of one or more texts.
        folder: as of :func:`find_spice`.
        timeout_s: deadline; by default ten minutes and a second per caption and reference.

    Raises:
        RewardError: something is missing, Java fails or does not end in time, or answers for other captions.
    """
    check_references("SPICE", captions, references)
    place = find_spice(folder)
    if not captions:
        return []
    pairs = zip(captions, references, strict=True)
    given = [
        {"image_id": i, "test": _words(caption), "refs": [_words(text) for text in group]}
        for i, (caption, group) in enumerate(pairs)
    ]
    timeout_s = timeout_s or 600 + sum(1 + len(group) for group in references)
    return _f_scores(_answer(given, place, timeout_s), len(captions))


def _words(text: str) -> str:
    return " ".join(tokenize(text))


def _answer(given: Sequence[dict], folder: Path, timeout_s: float) -> str:
    """Run the jar on captions; returns its JSON."""
    with tempfile.TemporaryDirectory(prefix="spice-") as temporary:
        asked, answered = Path(temporary, "captions.json"), Path(temporary, "scores.json")
        asked.write_text(json.dumps(given), encoding="utf-8")
        command = [find_java(), "-Xmx8G", "-jar", JAR, str(asked)]
        run_java("SPICE", [*command, "-out", str(answered), "-subset", "-silent"], folder, timeout_s)
        return answered.read_text(encoding="utf-8") if answered.is_file() else ""


def _f_scores(answer: str, count: int) -> list[float]:
    """F1 over all kinds of tuples by image; those of one kind may be null, but not this one."""
    try:
        scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in json.loads(answer)}
        return [scores[i] for i in range(count)]
    except (ValueError, TypeError, KeyError) as error:
        raise RewardError(
            f"SPICE: expected scores of {count} captions from {JAR}, got {answer[:200]!r} ({error!r})"
        ) from error


def _check_java(java: str) -> None:
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    match = _VERSION.search(said.stderr + said.stdout)
    version = match.group(1) if match else "an unknown version"
    if match is None or int(version) > NEWEST_JAVA:
        raise RewardError(
            f"SPICE: expected Java 8 to {NEWEST_JAVA}, as {JAR} writes with their JavaScript engine; "
            f"got {version} ({java}): put an older one first on PATH"
        )
