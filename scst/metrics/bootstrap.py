"""Metric values with a bootstrap interval over images and a signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.errors import RewardError
from scst.errors import DataError, RecipeError
from scst.metrics.corpus import Corpus, MetricSettings, Scores
from scst.metrics.signatures import signature
from scst.metrics.suite import METRICS

_CHUNK = 100  # resamples at a time: bounds the memory of (resamples, images) counts
LEAST_JUDGED = 2
"""Images without which there is neither an interval nor a comparison."""


@dataclass(frozen=True)
class MetricResult:
    """One metric of N captions.

    Attributes:
        value: of the corpus; NaN where no caption can be judged.
        ci95: bounds of its 95 % bootstrap interval over images; NaN where fewer than two are judged.
        signature: everything that must agree before two values may be compared.
        per_caption: N scores, None where a caption cannot be judged; empty for metrics of the whole set. For
            BLEU and METEOR their mean is not ``value``.
        judged: how many captions count in the value.
    """

    value: float
    ci95: tuple[float, float]
    signature: str
    per_caption: list[float | None]
    judged: int


def check_metrics(
    metrics: Sequence[str], settings: MetricSettings | None = None, *, columns: Sequence[str] = ()
) -> None:
    """Refuse, before any work, what cannot be scored.

    Args:
        metrics: names in ``METRICS``.
        settings: models and tables that metrics may need.
        columns: what there will be beside captions and references: ``images``, ``ended_by_eos``.

    Raises:
        RecipeError: an unknown metric, none, or one that lacks something, e.g. Java, a model or the images.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise RecipeError(f"metrics: unknown {unknown}; expected one or more of {', '.join(METRICS)}")
    for name in metrics:
        missing = [column for column in METRICS[name].needs if column not in columns]
        if missing:
            raise RecipeError(f"metrics: {name} needs {' and '.join(missing)}, and there are none")
        try:
            METRICS[name].check(settings or MetricSettings())
        except RewardError as error:
            raise RecipeError(f"metrics: {name}: {error}") from error


def score_captions(
    corpus: Corpus, metrics: Sequence[str], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, MetricResult]:
    """Score captions against their references.

    Args:
        corpus: captions, references and what else the metrics need; an empty caption scores 0.
        metrics: names in ``METRICS``.
        bootstrap_samples: resamples of the images for the interval.
        seed: of the resamples; the same for every metric, so that differences are paired.

    Returns:
        A result per metric, in the order asked for.

    Raises:
        DataError: no captions, unequal numbers, or an image without references.
        RecipeError: a metric that is unknown or lacks something.
        RewardError: a scorer failed.
    """
    scores = metric_scores(corpus, metrics)
    return metric_results(scores, len(corpus.captions), bootstrap_samples=bootstrap_samples, seed=seed)


def metric_scores(corpus: Corpus, metrics: Sequence[str]) -> dict[str, Scores]:
    """Scores by metric, for :func:`metric_results` and :func:`scst.metrics.paired.paired_differences`.

    Raises:
        As :func:`score_captions`.
    """
    check_corpus(corpus, metrics)
    return {name: METRICS[name].score(corpus) for name in metrics}


def metric_results(
    scores: Mapping[str, Scores], size: int, *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, MetricResult]:
    """Values with intervals and signatures, of scores on ``size`` captions."""
    return {
        name: MetricResult(
            found.value,
            percentiles(resampled_values(found, size, bootstrap_samples, seed), int(found.is_judged.sum())),
            signature(METRICS[name], found),
            found.per_caption,
            int(found.is_judged.sum()),
        )
        for name, found in scores.items()
    }


def resampled_values(scores: Scores, size: int, samples: int, seed: int) -> np.ndarray:
    """(samples,) corpus values over images drawn with replacement; equal seeds draw equal images.

    Args:
        scores: of a metric on ``size`` captions.
    """
    # One seed, one sequence of draws: two systems, or two metrics, are resampled with the same images, which
    # makes their differences paired.
    values = np.concatenate([scores.resampled(drawn) for drawn in _draws(size, samples, seed)])
    return values + (scores.value - values.mean()) if scores.centred else values


def _draws(size: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks of (S, N): how often every image was drawn."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        rows = range(min(_CHUNK, samples - start))
        # A resample is how often each image was drawn: corpus values are made of sums over images, and one
        # matrix product gives those of all resamples.
        yield np.stack([np.bincount(generator.integers(0, size, size), minlength=size) for _ in rows])


def percentiles(resampled: np.ndarray, judged: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of resampled values; NaN where fewer than two images were judged.

    Resamples in which no image is judged (NaN) are left out.
    """
    if judged < LEAST_JUDGED or np.isnan(resampled).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def check_corpus(corpus: Corpus, metrics: Sequence[str]) -> None:
    """Refuse captions and metrics that do not go together, before anything is scored.

    Raises:
        DataError, RecipeError: as :func:`score_captions`.
    """
    columns = [name for name in ("images", "ended_by_eos") if getattr(corpus, name) is not None]
    check_metrics(metrics, corpus.settings, columns=columns)
    captions, references = corpus.captions, corpus.references
    if not len(captions):
        raise DataError("no captions to score: expected at least one")
    if len(captions) != len(references):
        raise DataError(f"{len(captions)} captions, but references for {len(references)}: expected equal")
    for i, (caption, group) in enumerate(zip(captions, references, strict=True)):
        texts_only = not isinstance(group, str) and all(isinstance(text, str) for text in (caption, *group))
        if not group or not texts_only:
            raise DataError(f"caption {i}: expected text and a list of texts, got {caption!r} and {group!r}")


def metrics_json(results: Mapping[str, MetricResult]) -> dict[str, dict[str, Any]]:
    """What ``metrics.json`` holds of every metric; null for NaN."""
    return {
        name: {
            "value": number_or_none(result.value),
            "ci95": [number_or_none(bound) for bound in result.ci95],
            "judged": result.judged,
            "signature": result.signature,
        }
        for name, result in results.items()
    }


def number_or_none(value: float) -> float | None:
    """The number, None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)
