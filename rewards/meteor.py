"""METEOR 1.5 (Denkowski and Lavie 2014) through pycocoevalcap's Java process, kept from hanging.

The corpus value of METEOR is not the mean of its segments: statistics are summed first. :func:`meteor_value`
is that last step in numpy, so that the bootstrap need not ask Java a thousand times.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor as pycoco_meteor

from rewards.errors import RewardError
from rewards.java import find_java, tail

# English parameters of METEOR 1.5: exact, stem, synonym, paraphrase matches; then alpha, beta, gamma, delta.
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
NUM_STATISTICS = 23
PARAPHRASES = "data/paraphrase-en.gz"  # beside the jar


@dataclass(frozen=True)
class MeteorScores:
    """METEOR of N captions.

    Attributes:
        value: of the corpus, in 0-1, as the jar computed it.
        per_caption: N segment scores.
        statistics: (N, 23) counts, ready to be summed over captions for :func:`meteor_value`.
    """

    value: float
    per_caption: list[float]
    statistics: np.ndarray


class MeteorProcess(pycoco_meteor.Meteor):
    """pycocoevalcap's METEOR process, as a context manager that always ends.

    Differs from its parent in: a deadline after which Java is killed (a blocking read then fails instead of
    waiting for ever), standard error in a file (a full pipe would block Java), UTF-8 whatever the locale,
    ``|||`` removed from references too, the paraphrase table named (the jar's own search for it fails where
    the path has a space), and no lock in the destructor (an exception used to leave it held).

    Args:
        timeout_s: seconds from start to the kill.
    """

    def __init__(self, timeout_s: float) -> None:
        jar = Path(pycoco_meteor.__file__).resolve().with_name(pycoco_meteor.METEOR_JAR)
        command = [find_java(), "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar.name]
        self.lock = threading.Lock()
        self.statistics: list[list[float]] = []
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.meteor_p = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm", "-a", PARAPHRASES],
            cwd=jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.deadline = threading.Timer(timeout_s, self.meteor_p.kill)
        self.deadline.daemon = True
        self.deadline.start()

    def _stat(self, hypothesis_str: str, reference_list: Sequence[str]) -> str:
        line = super()._stat(hypothesis_str, [text.replace("|||", "") for text in reference_list])
        statistics = [float(number) for number in line.split()]
        if len(statistics) != NUM_STATISTICS:
            raise ValueError(f"expected {NUM_STATISTICS} numbers, got {line!r}")
        self.statistics.append(statistics)
        return line

    def last_words(self) -> str:
        """What Java wrote to standard error."""
        self.log.seek(0)
        return tail(self.log.read())

    def close(self) -> None:
        """End the process; may be called twice."""
        self.deadline.cancel()
        self.meteor_p.kill()
        self.meteor_p.wait()
        for stream in (self.meteor_p.stdout, self.log):
            stream.close()
        with contextlib.suppress(OSError):  # what was still buffered for a process that has ended
            self.meteor_p.stdin.close()

    def __enter__(self) -> MeteorProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        """Nothing: `close` is the end (the parent waits for a lock here)."""


def meteor_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, timeout_s: float | None = None
) -> MeteorScores:
    """METEOR of PTB-tokenised captions.

    Args:
        candidates: N captions.
        references: N lists of references.
        timeout_s: deadline in seconds; by default five minutes and 0.1 s per caption (usual: 12 s and 8 ms).

    Raises:
        RewardError: Java is missing, died or did not answer in time.
    """
    timeout_s = timeout_s or 300 + 0.1 * len(candidates)
    hypotheses = {i: [caption] for i, caption in enumerate(candidates)}
    with MeteorProcess(timeout_s) as process:
        try:
            value, per_caption = process.compute_score(dict(enumerate(references)), hypotheses)
        except (OSError, ValueError) as error:
            process.meteor_p.kill()
            process.meteor_p.wait()
            raise RewardError(
                f"METEOR: Java ended or was killed after {timeout_s:.0f} s ({error}). It said: "
                f"{process.last_words()}. METEOR needs 1.1 GB of memory; leave it out of `metrics` to go on"
            ) from error
        statistics = np.array(process.statistics)
    return MeteorScores(value, per_caption, _without_whole_matches(statistics))


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
