"""Signatures: what must agree before two values of a metric may be compared, as sacrebleu has them."""

from __future__ import annotations

from scst import __version__
from scst.metrics.corpus import Scores
from scst.metrics.suite import Metric


def signature(metric: Metric, scores: Scores) -> str:
    """E.g. ``ROUGE-L|refs:5|tok:ptb|beta:1.2|v:0.2.0``."""
    return "|".join(part for part in (metric.title, scores.details, f"v:{__version__}") if part)
