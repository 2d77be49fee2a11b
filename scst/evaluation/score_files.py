"""Caption files to scores: what ``launch/score.py`` and ``launch/evaluate.py --compare`` run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scst.data.files import write_jsonl
from scst.data.pictures import PictureFiles, pictures_by_id
from scst.data.terminal import PlainTable
from scst.errors import DataError
from scst.evaluation.caption_files import CaptionPairs, read_pairs
from scst.metrics.bootstrap import MetricResult
from scst.metrics.corpus import Corpus, MetricSettings
from scst.metrics.paired import MetricDifference, compare_captions
from scst.metrics.suite import METRICS


def read_corpus(
    predictions: str,
    references: Sequence[str] = (),
    *,
    settings: MetricSettings | None = None,
    images: str | None = None,
    subset: bool = False,
) -> Corpus:
    """Read captions, references and pictures from files.

    Args:
        predictions, references, subset: as in :func:`scst.evaluation.caption_files.read_pairs`.
        settings: models and tables.
        images: folder of pictures named by image id; default: the paths in the predictions, if any.

    Raises:
        DataError: on files that cannot be used.
    """
    return _corpus(read_pairs(predictions, references, subset=subset), images, settings)


def _corpus(pairs: CaptionPairs, images: str | None, settings: MetricSettings | None) -> Corpus:
    return Corpus(
        pairs.captions,
        pairs.references,
        images=_pictures(pairs, images),
        image_ids=pairs.image_ids,
        ended_by_eos=pairs.ended_by_eos,
        settings=settings or MetricSettings(),
    )


def _pictures(pairs: CaptionPairs, folder: str | None) -> PictureFiles | None:
    if folder is not None:
        return PictureFiles(pictures_by_id(folder, pairs.image_ids))
    return PictureFiles([Path(path) for path in pairs.image_paths]) if pairs.image_paths else None


def write_per_caption(path: str | Path, corpus: Corpus, results: Mapping[str, MetricResult]) -> None:
    """Write one line per caption: its id, its text and its score by every metric that has one.

    Raises:
        ValueError: the corpus has no image ids.
    """
    if corpus.image_ids is None:
        raise ValueError("scores by caption need a corpus with image ids")
    columns = {name: result.per_caption for name, result in results.items() if result.per_caption}
    rows = [
        {"image_id": image_id, "caption": caption, **{name: column[i] for name, column in columns.items()}}
        for i, (image_id, caption) in enumerate(zip(corpus.image_ids, corpus.captions, strict=True))
    ]
    write_jsonl(rows, path)


def compare_files(
    first: str,
    second: str,
    metrics: Sequence[str],
    *,
    settings: MetricSettings | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricDifference]:
    """Paired comparison of two prediction files that bring their references (``predictions.jsonl``).

    Args:
        first, second: A and B: files, or output folders of evaluations.
        metrics, settings, bootstrap_samples, seed: as in :func:`scst.metrics.paired.compare_captions`.

    Raises:
        DataError: files that cannot be used, or that are not about the same images and references.
    """
    a = read_pairs(first)
    b = in_order_of(read_pairs(second), a.image_ids, of=(second, first))
    corpus_a, corpus_b = (_corpus(pairs, None, settings) for pairs in (a, b))
    return compare_captions(corpus_a, corpus_b, metrics, bootstrap_samples=bootstrap_samples, seed=seed)


def in_order_of(pairs: CaptionPairs, image_ids: Sequence[str], *, of: tuple[str, str]) -> CaptionPairs:
    """Reorder pairs to follow a list of image ids.

    Args:
        pairs: as they were read.
        image_ids: of the other side.
        of: what the two sides are called in errors.

    Raises:
        DataError: when the two are not about the same images.
    """
    place = {image_id: i for i, image_id in enumerate(pairs.image_ids)}
    if set(place) != set(image_ids):
        lacking = sorted(set(place) ^ set(image_ids))
        raise DataError(
            f"{of[1]} ({len(image_ids)} images) and {of[0]} ({len(place)}) are not about the same images; "
            f"{len(lacking)} are in one only, e.g. {lacking[0]!r}"
        )
    order = [place[image_id] for image_id in image_ids]
    columns = {name: column and [column[i] for i in order] for name, column in vars(pairs).items()}
    return CaptionPairs(**columns)


def differences_table(differences: Mapping[str, MetricDifference], first: str, second: str) -> PlainTable:
    """A, B, their difference with its interval, the p-value with its test and the images that were judged on
    both sides, a line per metric; "-" for what cannot be said."""
    heads = ("metric", "A", "B", "B - A", "95 % interval", "p", "test", "images")
    table = PlainTable(*heads, title=f"A: {first}\nB: {second}", title_justify="left")
    for name, d in differences.items():
        values = (_shown(d.values[0]), _shown(d.values[1]), _shown(d.difference, "+.4f"))
        interval = "-" if math.isnan(d.ci95[0]) else f"{d.ci95[0]:+.4f} to {d.ci95[1]:+.4f}"
        table.add_row(METRICS[name].title, *values, interval, _shown(d.p_value, ".3f"), d.test, str(d.judged))
    return table


def _shown(number: float, form: str = ".4f") -> str:
    return "-" if math.isnan(number) else format(number, form)
