"""The data report as numbers: what is in a dataset, and what preparing it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scst.data.checked_rows import data_fingerprint
from scst.data.preparation.inspection import Example, Inspected
from scst.data.preparation.prepared_dataset import Prepared
from scst.data.preparation.statistics import (
    Agreement,
    CaptionStatistics,
    count_captions,
    equal_images,
    seen_in_training,
)

SUMMARY_TITLES = {
    "images": "images",
    "captions": "captions",
    "distinct_captions": "different captions",
    "repeated_in_image": "repeats within an image",
    "degenerate_captions": "degenerate captions",
    "vocabulary": "distinct words",
    "words_per_caption": "words per caption",
    "shortest": "shortest, in words",
    "longest": "longest, in words",
}


@dataclass(frozen=True)
class DataReport:
    """Everything the report shows.

    Attributes:
        dataset, train_split: as in the recipe.
        inspected, prepared: the outcome of both steps.
        synonyms: rare word -> canonical word, as applied.
        agreement: by scorer, over a sample of all images.
        not_measured: scorer -> why not.
        categories: image id -> category, where a file tells; {} otherwise.
    """

    dataset: str
    train_split: str
    inspected: Inspected
    prepared: Prepared
    synonyms: Mapping[str, str]
    agreement: Mapping[str, Agreement]
    not_measured: Mapping[str, str]
    categories: Mapping[str, str]

    @cached_property
    def before(self) -> CaptionStatistics:
        """Of the splits whose captions were worked on, before."""
        return count_captions(self._changed(self.prepared.before))

    @cached_property
    def after(self) -> CaptionStatistics:
        """Of the same splits, after."""
        return count_captions(self._changed(self.prepared.after))

    @property
    def unchanged(self) -> bool:
        """Whether captions are what they were, perhaps in another order."""
        return self.before.summary() == self.after.summary() and not any(
            step.changed + step.dropped for step in self.prepared.steps
        )

    @cached_property
    def splits(self) -> dict[str, CaptionStatistics]:
        """Statistics of every split of the new dataset."""
        names = dict.fromkeys(e.split for e in self.prepared.after)
        return {name: count_captions([e for e in self.prepared.after if e.split == name]) for name in names}

    @cached_property
    def fingerprint(self) -> str:
        """Of the new dataset, as ``load_splits`` of all its splits gives it."""
        columns: dict[str, dict[str, list[Any]]] = {}
        for example in self.prepared.after:
            of_split = columns.setdefault(example.split, {"image_id": [], "references": [], "hash": []})
            of_split["image_id"].append(example.image_id)
            of_split["references"].append(example.references)
            of_split["hash"].append(example.content_hash)
        return data_fingerprint(columns, {name: of_split["hash"] for name, of_split in columns.items()})

    def _changed(self, examples: Sequence[Example]) -> list[Example]:
        return [e for e in examples if e.split in self.prepared.changed_splits]


def summary_rows(report: DataReport) -> list[tuple[str, str, str]]:
    """(what, before, after) of the splits that were worked on."""
    before, after = report.before.summary(), report.after.summary()
    return [(title, f"{before[name]:,}", f"{after[name]:,}") for name, title in SUMMARY_TITLES.items()]


def report_json(report: DataReport) -> dict[str, Any]:
    """The numbers of the report."""
    prepared = report.prepared
    return {
        "dataset": report.dataset,
        "fingerprint": report.fingerprint,
        "changed_splits": prepared.changed_splits,
        "before": report.before.summary(),
        "after": report.after.summary(),
        "splits": {name: found.summary() for name, found in report.splits.items()},
        "steps": [vars(step) for step in prepared.steps],
        "synonyms": dict(report.synonyms),
        "selection": {"policy": prepared.selection, "chosen": dict(sorted(prepared.chosen.items()))},
        "agreement": {
            name: {key: value for key, value in vars(found).items() if key != "per_image"}
            for name, found in report.agreement.items()
        },
        "not_measured": dict(report.not_measured),
        "seen_in_training": seen_in_training(prepared.before, report.train_split),
        "equal_images": equal_images(prepared.before),
        "repeated_images_left_out": prepared.repeated_images,
        "images_left_without_caption": prepared.emptied,
        "bad_examples": [vars(example) for example in report.inspected.bad],
        "blank_captions": report.inspected.blank_captions,
    }
