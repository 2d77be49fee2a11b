"""Metric values with a confidence interval and a signature, and the paired comparison of two systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.errors import RewardError
from scst import __version__
from scst.errors import DataError, RecipeError
from scst.metrics.suite import METRICS, Corpus, Metric, MetricSettings, Scores

_CHUNK = 100  # resamples at a time: bounds the memory of (resamples, images) counts


@dataclass(frozen=True)
class MetricResult:
    """One metric of N captions.

    Attributes:
        value: of the corpus; NaN where no caption can be judged.
        ci95: bounds of its 95 % bootstrap interval over images.
        signature: everything that must agree before two values may be compared.
        per_caption: N scores, None where a caption cannot be judged; empty for metrics of the whole set. For
            BLEU and METEOR their mean is not ``value``.
    """

    value: float
    ci95: tuple[float, float]
    signature: str
    per_caption: list[float | None]


@dataclass(frozen=True)
class MetricDifference:
    """One metric of two systems on the same images.

    Attributes:
        values: of A and of B.
        difference: B minus A.
        ci95: bounds of its 95 % paired bootstrap interval.
        p_value: two-sided: how often resampled images turn the sign of the difference, twice.
        signature: of both.
    """

    values: tuple[float, float]
    difference: float
    ci95: tuple[float, float]
    p_value: float
    signature: str


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
    """Scores by metric, for :func:`metric_results` and :func:`paired_differences`.

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
            _percentiles(resampled_values(found, size, bootstrap_samples, seed)),
            signature(METRICS[name], found),
            found.per_caption,
        )
        for name, found in scores.items()
    }


def compare_captions(
    first: Corpus, second: Corpus, metrics: Sequence[str], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, MetricDifference]:
    """Paired bootstrap (Koehn 2004) of two systems: both are resampled with the same images.

    Args:
        first: A. second: B, on the same images in the same order with the same references.
        metrics, bootstrap_samples, seed: as in :func:`score_captions`.

    Raises:
        DataError: the references differ. Else as :func:`score_captions`.
    """
    check_corpus(first, metrics)
    check_corpus(second, metrics)
    if [list(group) for group in first.references] != [list(group) for group in second.references]:
        raise DataError("a paired comparison needs the same images with the same references on both sides")
    scores = [metric_scores(corpus, metrics) for corpus in (first, second)]
    return paired_differences(*scores, len(first.captions), bootstrap_samples=bootstrap_samples, seed=seed)


def paired_differences(
    first: Mapping[str, Scores],
    second: Mapping[str, Scores],
    size: int,
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricDifference]:
    """The comparison by every metric that both have scores of, on the same ``size`` images.

    Args:
        first, second: scores of A and B by metric.
        size, bootstrap_samples, seed: as in :func:`metric_results`.
    """
    shared = [name for name in first if name in second]
    return {
        name: _difference(METRICS[name], first[name], second[name], size, bootstrap_samples, seed)
        for name in shared
    }


def _difference(metric: Metric, a: Scores, b: Scores, size: int, samples: int, seed: int) -> MetricDifference:
    resampled = resampled_values(b, size, samples, seed) - resampled_values(a, size, samples, seed)
    turned = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return MetricDifference(
        values=(a.value, b.value),
        difference=b.value - a.value,
        ci95=_percentiles(resampled),
        p_value=float(min(1.0, 2 * (turned + 1) / (samples + 1))),
        signature=signature(metric, a),
    )


def signature(metric: Metric, scores: Scores) -> str:
    """E.g. ``ROUGE-L|refs:5|tok:ptb|beta:1.2|v:0.1.0``."""
    return "|".join(part for part in (metric.title, scores.details, f"v:{__version__}") if part)


def resampled_values(scores: Scores, size: int, samples: int, seed: int) -> np.ndarray:
    """(samples,) corpus values over images drawn with replacement; equal seeds draw equal images.

    Args:
        scores: of a metric on ``size`` captions.
    """
    values = np.concatenate([scores.resampled(drawn) for drawn in _draws(size, samples, seed)])
    return values + (scores.value - values.mean()) if scores.centred else values


def _draws(size: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks of (S, N): how often every image was drawn."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        rows = range(min(_CHUNK, samples - start))
        yield np.stack([np.bincount(generator.integers(0, size, size), minlength=size) for _ in rows])


def _percentiles(resampled: np.ndarray) -> tuple[float, float]:
    if np.isnan(resampled).all():
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
    """What ``metrics.json`` holds: value, interval and signature of every metric; null for NaN."""
    return {
        name: {
            "value": _number(result.value),
            "ci95": [_number(bound) for bound in result.ci95],
            "signature": result.signature,
        }
        for name, result in results.items()
    }


def comparison_json(differences: Mapping[str, MetricDifference]) -> dict[str, dict[str, Any]]:
    """The comparison as plain values."""
    return {
        name: {
            "a": _number(d.values[0]),
            "b": _number(d.values[1]),
            "difference": _number(d.difference),
            "ci95": [_number(bound) for bound in d.ci95],
            "p_value": d.p_value,
            "signature": d.signature,
        }
        for name, d in differences.items()
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
