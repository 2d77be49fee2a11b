"""Two systems on the same images: the difference of a metric, its interval, and whether it is chance.

Two tests, chosen by the number of images that both systems are judged on:

- below ``FEWEST_FOR_BOOTSTRAP`` images approximate randomisation (Noreen 1989; sacrebleu has it too): if the
  systems are alike, exchanging their captions on any images changes nothing. The p-value is the share of
  random exchanges whose difference is as large as the one that was seen. For a mean over images this is the
  sign-flip permutation test. It holds its level whatever the number of images.
- from there on the paired bootstrap (Koehn 2004): how often resampled images turn the sign of the difference,
  twice. With few images it rejects too often: at 20 images 9 % of true null hypotheses instead of 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scst.errors import DataError
from scst.metrics.bootstrap import (
    LEAST_JUDGED,
    check_corpus,
    metric_scores,
    number_or_none,
    percentiles,
    resampled_values,
)
from scst.metrics.corpus import Corpus, Scores
from scst.metrics.signatures import signature
from scst.metrics.suite import METRICS, Metric

FEWEST_FOR_BOOTSTRAP = 200
PERMUTATION, BOOTSTRAP = "permutation", "bootstrap"
_CHUNK = 100  # exchanges at a time: bounds the memory of (exchanges, 2 * images) counts
_ROUNDING = 1e-9  # differences within this share of the values are equal: sums in another order


@dataclass(frozen=True)
class MetricDifference:
    """One metric of two systems on the same images.

    Attributes:
        values: of A and of B.
        difference: B minus A.
        ci95: bounds of its 95 % paired bootstrap interval; NaN where fewer than two images are judged.
        p_value: two-sided; NaN where fewer than two images are judged on both sides.
        test: "permutation" or "bootstrap", whichever gave the p-value.
        judged: images that both systems are judged on.
        signature: of both.
    """

    values: tuple[float, float]
    difference: float
    ci95: tuple[float, float]
    p_value: float
    test: str
    judged: int
    signature: str


def compare_captions(
    first: Corpus, second: Corpus, metrics: Sequence[str], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, MetricDifference]:
    """Score two systems and compare them.

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
    return paired_differences(
        metric_scores(first, metrics),
        metric_scores(second, metrics),
        len(first.captions),
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )


def paired_differences(
    first: Mapping[str, Scores],
    second: Mapping[str, Scores],
    size: int,
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricDifference]:
    """Compare two systems by every metric that both were scored with, on the same ``size`` images.

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
    judged = int((a.is_judged & b.is_judged).sum())
    test = PERMUTATION if judged < FEWEST_FOR_BOOTSTRAP else BOOTSTRAP
    if judged < LEAST_JUDGED:
        p_value = float("nan")
    elif test == PERMUTATION:
        p_value = permutation_p_value(a, b, samples, seed)
    else:
        p_value = bootstrap_p_value(resampled)
    return MetricDifference(
        values=(a.value, b.value),
        difference=b.value - a.value,
        ci95=percentiles(resampled, judged),
        p_value=p_value,
        test=test,
        judged=judged,
        signature=signature(metric, a),
    )


def bootstrap_p_value(resampled: np.ndarray) -> float:
    """Twice the share of resampled differences on the rarer side of 0; equal values (0) count on both sides.

    Resamples in which nothing is judged (NaN) say nothing and are left out; NaN when none is left.
    """
    compared = resampled[~np.isnan(resampled)]
    if not len(compared):
        return float("nan")
    # the observed difference counts as one more resample: no finite number of them proves p = 0
    turned = min((compared <= 0).sum(), (compared >= 0).sum())
    return float(min(1.0, 2 * (turned + 1) / (len(compared) + 1)))


def permutation_p_value(a: Scores, b: Scores, samples: int, seed: int) -> float:
    """Share of random exchanges of captions between systems whose difference is at least the observed one.

    The exchange of no caption is one of them, so that no p-value is 0. Exchanges that leave one side without
    a judged image are left out.
    """
    exchanged = _exchanged_differences(a, b, samples, seed)
    compared = np.abs(exchanged[~np.isnan(exchanged)])
    least = abs(b.value - a.value) - _ROUNDING * max(abs(a.value), abs(b.value))
    return float(((compared >= least).sum() + 1) / (len(compared) + 1))


def _exchanged_differences(a: Scores, b: Scores, samples: int, seed: int) -> np.ndarray:
    """(samples,) differences B minus A after the captions of random images were exchanged."""
    generator, values = np.random.default_rng(seed), a.joined(b)
    differences = []
    for start in range(0, samples, _CHUNK):
        # (exchanges, N): 1 where an image's captions stay with their system. After the exchange one system
        # has A's captions there and B's elsewhere, as weights of all 2N captions; the other has the rest.
        stays = generator.integers(0, 2, (min(_CHUNK, samples - start), len(a.rows)))
        first, second = np.hstack([stays, 1 - stays]), np.hstack([1 - stays, stays])
        differences.append(values(second) - values(first))
    return np.concatenate(differences)


def comparison_json(differences: Mapping[str, MetricDifference]) -> dict[str, dict[str, Any]]:
    """The comparison as plain values; null for NaN."""
    return {
        name: {
            "a": number_or_none(d.values[0]),
            "b": number_or_none(d.values[1]),
            "difference": number_or_none(d.difference),
            "ci95": [number_or_none(bound) for bound in d.ci95],
            "p_value": number_or_none(d.p_value),
            "test": d.test,
            "judged": d.judged,
            "signature": d.signature,
        }
        for name, d in differences.items()
    }
