"""From a dataset to a prepared one: split, clean, choose captions, write. Images are not kept in memory.

What scores captions comes from outside. Only the training split is changed unless asked otherwise: the
references of the other splits stay as people wrote them, so that scores on them can be compared with others.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scst.data.fractions import parse_fractions
from scst.data.preparation.cleaning import Step, StepReport, clean_captions
from scst.data.preparation.inspection import Advance, Example
from scst.data.preparation.selection import SCORED, choose_captions, with_chosen_first
from scst.data.preparation.streams import RowStream
from scst.data.preparation.writers import Writer
from scst.data.splits import assign_fractions, check_leakage
from scst.errors import DataError

CorpusScores = Callable[[Sequence[Example]], Sequence[Sequence[float]]]
"""Scores for every caption of every example, for a selection that goes by scores."""


@dataclass(frozen=True)
class Prepared:
    """A dataset ready to be written.

    Attributes:
        before: the good examples with their splits.
        after: what is left of them, captions cleaned and chosen.
        changed_splits: whose captions were cleaned and chosen.
        steps: what every cleaning step did.
        emptied: ids of images that cleaning left without a caption.
        repeated_images: ids left out because an earlier image has the same content.
        chosen: how often the first, second ... caption was chosen, of the cleaned ones.
        selection: how.
    """

    before: list[Example]
    after: list[Example]
    changed_splits: list[str]
    steps: list[StepReport]
    emptied: list[str]
    repeated_images: list[str]
    chosen: Counter[int]
    selection: str


def split_examples(
    examples: Sequence[Example], fractions: str | None, seed: int, *, whole: str = "train"
) -> list[Example]:
    """Examples with the splits of the fractions, such as ``"80/10/10"``; with their own for None.

    Images of the same content stay together. Without fractions, a dataset that names no split at all is one
    split, called ``whole``.
    """
    if fractions is None:
        named = any(example.split for example in examples)
        return [example if named else replace(example, split=whole) for example in examples]
    ids, hashes = [e.image_id for e in examples], [e.content_hash for e in examples]
    assigned = assign_fractions(ids, hashes, parse_fractions(fractions), seed)
    split_of = {number: split for split, numbers in assigned.items() for number in numbers}
    return [replace(example, split=split_of[number]) for number, example in enumerate(examples)]


def check_splits(examples: Sequence[Example], train_split: str) -> None:
    """Refuse a dataset without the training split, and images that stand in two splits.

    Raises:
        DataError: naming the splits, or the images.
    """
    by_split: dict[str, list[Example]] = {}
    for example in examples:
        by_split.setdefault(example.split, []).append(example)
    if train_split not in by_split:
        found = ", ".join(f"{name or '(none)'} ({len(group)})" for name, group in by_split.items())
        raise DataError(
            f"train_split: there is no split {train_split!r}; the dataset has {found}. Name one of these, or "
            "split by fractions such as 80/10/10."
        )
    check_leakage(
        {name: {"image_id": [e.image_id for e in group]} for name, group in by_split.items()},
        content_hashes={name: [e.content_hash for e in group] for name, group in by_split.items()},
    )


def without_repeated_images(examples: Sequence[Example], train_split: str) -> tuple[list[Example], list[str]]:
    """Leave out images whose content another image has; returns what is left, and the ids left out.

    Of equal images the first stays, one outside the training split before one in it: evaluation keeps its
    images.
    """
    keeper: dict[str, int] = {}
    for example in sorted(examples, key=lambda e: (e.split == train_split, e.row)):
        keeper.setdefault(example.content_hash, example.row)
    left = [example for example in examples if keeper[example.content_hash] == example.row]
    kept = {example.row for example in left}
    return left, [example.image_id for example in examples if example.row not in kept]


def prepare(
    examples: Sequence[Example],
    *,
    train_split: str = "train",
    all_splits: bool = False,
    steps: Sequence[Step] = (),
    selection: str = "all",
    kept_captions: str = "all",
    scores: CorpusScores | None = None,
    seed: int = 0,
    drop_repeated_images: bool = False,
) -> Prepared:
    """Clean and choose the captions of the training split, or of all splits.

    Args:
        examples: of :func:`split_examples`.
        steps: cleaning steps in order. Images of changed splits that lose every caption are left out.
        selection: one of ``scst.data.preparation.selection.SELECTIONS``.
        kept_captions: ``all`` puts the chosen caption first and keeps the others behind it, so that rewards
            still see every reference; ``chosen`` leaves the others out.
        scores: for a selection by scores.
        seed: of random choices.

    Raises:
        DataError: a split or a cleaning step cannot be used, or an image stands in two splits.
        RecipeError: the selection is not known, or lacks scores.
    """
    repeated: list[str] = []
    if drop_repeated_images:
        examples, repeated = without_repeated_images(examples, train_split)
    check_splits(examples, train_split)
    changed = [e for e in examples if all_splits or e.split == train_split]
    captions, reports = clean_captions([e.references for e in changed], steps)
    cleaned = [replace(e, references=group) for e, group in zip(changed, captions, strict=True) if group]
    left = {e.row for e in cleaned}
    wanted = scores(cleaned) if selection in SCORED and scores else None
    positions = choose_captions(
        [e.references for e in cleaned], [e.image_id for e in cleaned], selection, seed=seed, scores=wanted
    )
    new = {
        e.row: replace(
            e, references=_arranged(e.references, at, kept_captions if selection != "all" else "all")
        )
        for e, at in zip(cleaned, positions, strict=True)
    }
    lost = {e.row: e.image_id for e in changed if e.row not in left}
    return Prepared(
        before=list(examples),
        after=[new.get(e.row, e) for e in examples if e.row not in lost],
        changed_splits=list(dict.fromkeys(e.split for e in changed)),
        steps=reports,
        emptied=list(lost.values()),
        repeated_images=repeated,
        chosen=Counter(positions),
        selection=selection,
    )


def _arranged(captions: list[str], chosen: int, kept: str) -> list[str]:
    return [captions[chosen]] if kept == "chosen" else with_chosen_first(captions, chosen)


def write_examples(
    stream: RowStream, examples: Iterable[Example], writer: Writer, advance: Advance | None = None
) -> None:
    """Read the stream again and write the rows of the examples, with their captions and splits."""
    by_row = {example.row: example for example in examples}
    for number, row in enumerate(stream):
        if number in by_row:
            example = by_row[number]
            writer.add(replace(row, references=example.references, split=example.split))
        if advance:
            advance(1)
    writer.close()


def most_captions(examples: Iterable[Example]) -> int:
    """The largest number of captions of an example."""
    return max((len(example.references) for example in examples), default=0)


def form_to_write(layout: str, form: str, folder: Path, dataset: str) -> str:
    """The layout to write for ``auto``: the dataset's own, parquet where it has no other.

    Raises:
        DataError: the output folder is the dataset itself, or lies in it.
    """
    source, target = Path(dataset).expanduser().resolve(), folder.resolve()
    if form not in ("hub", "embedded") and (
        source == target or source in target.parents or target in source.parents
    ):
        raise DataError(
            f"output_dir: {folder} and the dataset {dataset} lie in each other; give another folder"
        )
    return ("risc" if form == "risc" else "parquet") if layout == "auto" else layout
