"""METEOR 1.5 (Denkowski and Lavie 2014), as pycocoevalcap computes it, from a long-lived Java process.

nltk's ``meteor_score`` is another metric (older weights, no paraphrases): 0.684 where this one gives 0.425.
The jar comes with pycocoevalcap and is under the GPL; no other reward needs it. Java takes about ten seconds
to load, 0.6 GB of memory, and then one to two milliseconds per caption.

The corpus value of METEOR is not the mean of its segments: statistics are summed first. :func:`meteor_value`
is that last step in numpy, so that the bootstrap need not ask Java a thousand times.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor as pycoco_meteor

from rewards.errors import NamedRewardError
from rewards.execution.threads import CallThread
from rewards.scorers.encoders import check_references
from rewards.scorers.java import JavaDied, JavaLines, find_java
from rewards.scorers.tokenizer import tokenize

JAR = Path(pycoco_meteor.__file__).resolve().with_name(pycoco_meteor.METEOR_JAR)
PARAPHRASES = "data/paraphrase-en.gz"
"""Beside the jar; named, as the jar's own search for it fails where the path has a space."""

# The serial collector halves the memory (0.6 for 1.1 GB) and takes no cores from training. 400 equal words
# against themselves, the worst caption, fit 1 GB.
_JAVA_OPTIONS = ("-Dfile.encoding=UTF-8", "-Xmx1G", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")
CHUNK = 16
"""Captions in flight: the answers, 140 bytes at most each, fit the smallest pipe."""

RESTARTS = 2
"""New processes for one chunk, when Java dies on it."""

# English parameters of METEOR 1.5: exact, stem, synonym, paraphrase matches; then alpha, beta, gamma, delta.
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
NUM_STATISTICS = 23


@dataclass(frozen=True)
class MeteorScores:
    """METEOR of N captions.

    Attributes:
        value: of the corpus, in 0-1.
        per_caption: N segment scores.
        statistics: (N, 23) counts, ready to be summed over captions for :func:`meteor_value`.
    """

    value: float
    per_caption: list[float]
    statistics: np.ndarray


class MeteorService:
    """One Java process for all captions of this Python process.

    Java loads in the background: building the service does not wait, the first answer does. Requests are
    answered one after the other, whichever thread they come from. A Java process that dies is replaced, and
    the captions it had are sent again; one that does not answer in time is ended, and replaced at the next
    request. It ends with :meth:`close`, as a context manager, with the last reference to it, or with Python.

    It can neither be pickled nor used in a fork: build one there.

    Args:
        java: path of a Java runtime; by default that of :func:`rewards.scorers.java.find_java`.
        timeout_s: the longest wait for Java: for its start with the first captions, or for 16 captions
            (usual: 10 s, 0.03 s; a caption of 400 equal words takes 4 s against a reference of the same).

    Raises:
        RewardError: there is no Java.
    """

    def __init__(self, java: str | None = None, *, timeout_s: float = 120.0):
        self.timeout_s = timeout_s
        options = ("-", "-", "-stdio", "-l", "en", "-norm", "-a", PARAPHRASES)
        self._command = [java or find_java(), *_JAVA_OPTIONS, "-jar", JAR.name, *options]
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()  # of `_closed` and `_java`
        self._java = self._started()
        self._thread = CallThread("METEOR")

    def scores(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Segment scores in 0-1; arguments and errors as of :meth:`submit`."""
        return self.submit(captions, references).result().per_caption

    def submit(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Future[MeteorScores]:
        """Ask for the scores of N captions without waiting.

        Args:
            captions: N texts.
            references: N lists of one or more texts.

        Returns:
            The scores to come; or a RewardError: Java died three times, did not answer in time, answered
            something else, or the service was closed.

        Raises:
            RewardError: a caption has no references, the service is closed, or this is a fork.
        """
        if os.getpid() != self._owner:
            raise NamedRewardError("METEOR: a service cannot be used in a fork: build one there")
        check_references("METEOR", captions, references)
        self._running()  # or say that it is closed
        return self._thread.submit(self._scored, list(captions), list(references))

    def close(self) -> None:
        """End Java; may be called twice, and while requests wait: they fail."""
        with self._lock:
            self._closed = True
            self._java.end()

    def __enter__(self) -> MeteorService:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _started(self) -> JavaLines:
        return JavaLines("METEOR", self._command, JAR.parent)

    def _running(self) -> JavaLines:
        """The process, a new one if it has ended."""
        with self._lock:
            if self._closed:
                raise NamedRewardError("METEOR: the service is closed")
            if not self._java.end.alive:
                self._java = self._started()
            return self._java

    def _scored(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
        """Equal lines, frequent among the samples of one image, are sent once."""
        lines = [_score_line(caption, group) for caption, group in zip(captions, references, strict=True)]
        distinct = list(dict.fromkeys(lines))
        answers: dict[str, tuple[float, list[float]]] = {}
        for start in range(0, len(distinct), CHUNK):
            chunk = distinct[start : start + CHUNK]
            answers.update(zip(chunk, self._answers(chunk), strict=True))
        statistics = np.array([answers[line][1] for line in lines]).reshape(-1, NUM_STATISTICS)
        statistics = _without_whole_matches(statistics)
        value = float(meteor_value(statistics.sum(0)))
        return MeteorScores(value, [answers[line][0] for line in lines], statistics)

    def _answers(self, chunk: Sequence[str]) -> list[tuple[float, list[float]]]:
        """Score and statistics of every line, from as many Java processes as it takes."""
        for _ in range(RESTARTS + 1):
            try:
                return self._asked(self._running(), chunk)
            except JavaDied as error:
                death = error
        raise NamedRewardError(
            f"METEOR: Java died {RESTARTS + 1} times in a row ({death}). It needs 0.7 GB of memory; "
            "leave METEOR out of `metrics` or `rewards` to go on without"
        ) from death

    def _asked(self, java: JavaLines, chunk: Sequence[str]) -> list[tuple[float, list[float]]]:
        """The jar's two requests: SCORE gives the statistics of a caption; EVAL takes those of several, and
        gives their scores and at last that of the corpus."""
        try:
            statistics = java.ask(chunk, len(chunk), self.timeout_s)
            rows = [_numbers(row, NUM_STATISTICS) for row in statistics]
            *scores, _ = java.ask([" ||| ".join(["EVAL", *statistics])], len(chunk) + 1, self.timeout_s)
            return [(_numbers(score, 1)[0], row) for score, row in zip(scores, rows, strict=True)]
        except ValueError as error:
            java.end()  # its answers no longer belong to our lines
            raise NamedRewardError(
                f"METEOR: {error}; does {self._command[0]!r} print something by itself?"
            ) from error


def meteor_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
    """METEOR of N captions from a process that is started for them.

    Args:
        captions: N texts.
        references: N lists of one or more texts.

    Raises:
        RewardError: Java is missing or fails; as :meth:`MeteorService.submit`.
    """
    with MeteorService() as service:
        return service.submit(captions, references).result()


def _score_line(caption: str, references: Sequence[str]) -> str:
    """A request of the jar: words have no line breaks, tabs or ``|||``; of equal references one is enough."""
    texts = dict.fromkeys(_words(text) for text in references)
    return " ||| ".join(["SCORE", *texts, _words(caption)])


def _words(text: str) -> str:
    return " ".join(tokenize(text))


def _numbers(line: str, count: int) -> list[float]:
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"expected {count} numbers in a line from Java, got {line!r}")
    return numbers


def _without_whole_matches(statistics: np.ndarray) -> np.ndarray:
    """(N, 23): a caption equal to its reference adds no chunk to the corpus, as in the jar's aggregation."""
    statistics = statistics.copy()
    statistics[_whole_match(statistics), 20] = 0
    return statistics


def _whole_match(statistics: np.ndarray) -> np.ndarray:
    test_length, reference_length, chunks = statistics[..., 0], statistics[..., 1], statistics[..., 20]
    matched = (statistics[..., 21] == test_length) & (statistics[..., 22] == reference_length)
    return matched & (chunks <= 1)


def meteor_value(statistics: np.ndarray) -> np.ndarray:
    """METEOR of statistics (..., 23), summed over captions: Denkowski and Lavie 2014, equations 1 to 5.

    The columns are the jar's: lengths and function words of caption and reference (0-3), content and function
    matches of both for each of four kinds of match (4-19), chunks (20), matched words of both (21, 22).
    """
    lengths, matches = statistics[..., :4], statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)
    weighted_lengths = _DELTA * (lengths[..., :2] - lengths[..., 2:]) + (1 - _DELTA) * lengths[..., 2:]
    weighted_matches = _DELTA * matches[..., :2] + (1 - _DELTA) * matches[..., 2:]  # (..., 4, 2)
    weighted_matches = (weighted_matches * _MATCH_WEIGHTS[:, None]).sum(-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted_matches / weighted_lengths, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = statistics[..., 20] / statistics[..., 21:23].mean(-1)
        fragmentation = np.where(_whole_match(statistics), 0, fragmentation)
        value = f_mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.where((weighted_matches > 0).all(-1), value, 0.0)
