"""This evaluation against an earlier one: paired differences, and the captions that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scst.errors import DataError
from scst.evaluation.caption_files import CaptionPairs, read_pairs
from scst.evaluation.score_files import in_order_of
from scst.metrics.bootstrap import metric_scores
from scst.metrics.corpus import Corpus, Scores
from scst.metrics.paired import MetricDifference, paired_differences
from scst.metrics.suite import METRICS


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same images: A, the other one, and B, this one.

    Attributes:
        name: what the page calls the other one.
        captions: N captions of the other one.
        differences: by metric, B minus A.
        metric: the one that ranks single captions by how much they changed.
        changes: N differences of that metric; 0 where a caption cannot be judged.
    """

    name: str
    captions: Sequence[str]
    differences: Mapping[str, MetricDifference]
    metric: str
    changes: Sequence[float]


def other_evaluation(
    path: str, image_ids: Sequence[str], references: Sequence[Sequence[str]]
) -> CaptionPairs:
    """Captions of another evaluation in the order of this one.

    Args:
        path: its output folder or predictions.
        image_ids, references: N each, of this one.

    Raises:
        DataError: when it cannot be read, or is about other images or references.
    """
    pairs = in_order_of(read_pairs(path), image_ids, of=(path, "this evaluation"))
    pairs_of_references = zip(image_ids, pairs.references, references, strict=True)
    changed = [image_id for image_id, a, b in pairs_of_references if list(a) != list(b)]
    if changed:
        raise DataError(
            f"compare_with: {path} was scored against other references: {len(changed)} images differ, e.g. "
            f"{changed[0]!r}; evaluate both on the same dataset"
        )
    return pairs


def compare_with(
    other: CaptionPairs,
    name: str,
    corpus: Corpus,
    scores: Mapping[str, Scores],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Score another evaluation's captions like this one's, and compare.

    Args:
        other: as :func:`other_evaluation` gives it.
        name: what the page calls it.
        corpus, scores: of this evaluation; metrics that need what the other one did not record are left out.
        bootstrap_samples, seed: resamples or exchanges of the paired comparison.
    """
    theirs = replace(corpus, captions=other.captions, ended_by_eos=other.ended_by_eos)
    metrics = [
        metric for metric in scores if "ended_by_eos" not in METRICS[metric].needs or theirs.ended_by_eos
    ]
    their_scores = metric_scores(theirs, metrics)
    settings = {"bootstrap_samples": bootstrap_samples, "seed": seed}
    differences = paired_differences(their_scores, scores, len(corpus.captions), **settings)
    metric = ranking_metric({name: found.per_caption for name, found in their_scores.items()})
    return Comparison(name, other.captions, differences, metric, _changes(metric, their_scores, scores))


def _changes(metric: str, first: Mapping[str, Scores], second: Mapping[str, Scores]) -> list[float]:
    if not metric:
        return []
    pairs = zip(first[metric].per_caption, second[metric].per_caption, strict=True)
    return [0.0 if a is None or b is None else b - a for a, b in pairs]


def ranking_metric(per_caption: Mapping[str, Sequence[float | None]]) -> str:
    """The metric that ranks captions: CIDEr-D, else the first quality metric with scores per caption.

    "" when there is none.
    """
    names = ("cider_d", *(name for name in per_caption if METRICS[name].direction == 1))
    return next((name for name in names if per_caption.get(name)), "")
