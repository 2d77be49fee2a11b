"""The whole preparation of a dataset: inspect, split, clean, choose captions, count n-grams, write."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from rewards.scorers.document_frequencies import FILE_NAME, DocumentFrequencies
from scst.data.fractions import parse_fractions, refuse_to_resplit
from scst.data.preparation import caption_scorers
from scst.data.preparation.caption_scorers import AGREEMENTS, consensus_scores
from scst.data.preparation.cleaning import Step, parse_steps
from scst.data.preparation.data_report import DataReport, report_json, summary_rows
from scst.data.preparation.inspection import Inspected, image_scores, inspect
from scst.data.preparation.prepared_dataset import (
    CorpusScores,
    Prepared,
    form_to_write,
    most_captions,
    prepare,
    split_examples,
    write_examples,
)
from scst.data.preparation.prepared_folder import REPORT, check_output, new_folder
from scst.data.preparation.selection import sibling_scores
from scst.data.preparation.statistics import agreement_sample, agreements
from scst.data.preparation.streams import RowStream
from scst.data.preparation.synonyms import synonym_step, wordnet_related
from scst.data.preparation.writers import make_writer
from scst.data.sources import check_layout, find_form
from scst.data.terminal import PlainTable, plain, progress_bar
from scst.data.validate import refuse_bad
from scst.errors import DataError, RecipeError

Finish = Callable[[Path, DataReport, DocumentFrequencies], None]
"""Called with the folder, the report and the table when all else is written; may add files of its own."""
Bar = Callable[[str, int | None], Callable[[int], None]]
"""(title, total) -> a function that is told how many were done since its last call."""


@dataclass(frozen=True)
class Preparation:
    """Looks at a dataset, cleans and chooses captions of its training split, and writes a new dataset.

    ``Preparation("data/RISC", "data/clean", cleaning=["lowercase", "dedupe"]).run()``

    Attributes:
        dataset: RISC folder, parquet, saved dataset, hub id or embedded:scenes.
        output_dir: folder of the new dataset.
        layout: ``risc``, ``parquet``, ``none`` (the report only), or ``auto``: that of the dataset.
        overwrite: replace an earlier prepared dataset in ``output_dir``.
        train_split: whose captions are cleaned, chosen and counted.
        all_splits: clean and choose in every split.
        split_fractions: such as ``60/20/20`` (train/val/test); None: the dataset's own splits.
        split_seed: of the fractions.
        resplit: whether the fractions may take the place of splits that the dataset declares.
        on_bad_example: ``error`` or ``skip``.
        repeated_images: ``keep`` or ``drop`` images with the content of another one.
        cleaning: names of steps, see :mod:`scst.data.preparation.cleaning`.
        synonym_distance, synonym_min_samples, synonym_rare: of the step ``synonyms``, see
            :func:`scst.data.preparation.synonyms.synonym_step`.
        synonym_wordnet: map only words that share a meaning in WordNet.
        sentence_model: encoder of words and captions.
        selection: of the caption that comes first, see :mod:`scst.data.preparation.selection`.
        kept_captions: beside the chosen one: ``all`` others behind it, or none (``chosen``).
        clip_model: of the selection ``clipscore``.
        seed: of random choices, and of the samples in the report.
        eos: whether the table of document frequencies counts the end of sequence: ``emitted`` or ``omitted``.
        agreement: how the agreement between an image's captions is measured, of ``AGREEMENTS``.
        agreement_images: images in that sample.
        categories: CSV file with image_id (or image) and category; None: the dataset's ``index.csv``, if any.
        contact_sheet: images in the report's contact sheet.
    """

    dataset: str
    output_dir: str
    layout: str = "auto"
    overwrite: bool = False
    train_split: str = "train"
    all_splits: bool = False
    split_fractions: str | None = None
    split_seed: int = 0
    resplit: bool = False
    on_bad_example: str = "error"
    repeated_images: str = "keep"
    cleaning: Sequence[str] = ()
    synonym_distance: float = 0.5
    synonym_min_samples: int = 2
    synonym_rare: int = 20
    synonym_wordnet: bool = False
    sentence_model: str | None = None
    selection: str = "all"
    kept_captions: str = "all"
    clip_model: str | None = None
    seed: int = 42
    eos: str = "emitted"
    agreement: Sequence[str] = field(default=AGREEMENTS)
    agreement_images: int = 500
    categories: str | None = None
    contact_sheet: int = 24

    def check(self) -> None:
        """Refuse what can be wrong before an image is read.

        Raises:
            RecipeError: on a setting that cannot be used. DataError: when input and output lie in each other.
        """
        self._steps({})
        if self.split_fractions is not None:
            parse_fractions(self.split_fractions)
            if not self.resplit:
                refuse_to_resplit(check_layout(self.dataset)["splits"])
        if self.selection == "clipscore":
            caption_scorers.clip_scorer(self.clip_model)
        for name in ("agreement_images", "contact_sheet"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        unknown = [name for name in self.agreement if name not in AGREEMENTS]
        if unknown:
            raise RecipeError(f"agreement: unknown {unknown[0]!r}; known are {', '.join(AGREEMENTS)}")
        if self.categories and not Path(self.categories).is_file():
            raise RecipeError(f"categories: there is no file {self.categories!r}")
        output = Path(self.output_dir)
        form_to_write(self.layout, find_form(self.dataset), output, self.dataset)
        check_output(output, overwrite=self.overwrite)

    def run(self, finish: Finish | None = None, console: Console | None = None) -> DataReport:
        """Prepare the dataset; the output folder appears when everything in it is complete.

        It holds the dataset, ``document_frequencies.json``, ``data_report.json``, and what ``finish`` adds.

        Args:
            finish: adds files, such as a page; see :data:`Finish`.
            console: where the summary goes; progress goes to standard error.

        Raises:
            RecipeError: of :meth:`check`. DataError: the dataset, a split or a cleaning step cannot be used,
                or the folder cannot be written.
        """
        self.check()
        started, output = time.time(), Path(self.output_dir)
        try:
            with new_folder(output) as work:
                report = self._write_into(work, finish)
        except OSError as error:
            raise DataError(f"output_dir: {self.output_dir!r} cannot be written: {error}") from error
        if console is not None:
            print_summary(report, output, console, time.time() - started)
        return report

    def _write_into(self, work: Path, finish: Finish | None) -> DataReport:
        with progress_bar(Console(stderr=True), transient=True) as progress:

            def bar(title: str, count: int | None) -> Callable[[int], None]:
                task = progress.add_task(title, total=count)
                return lambda done: progress.advance(task, done)

            stream = RowStream(self.dataset, work / "hub")
            inspected = self._inspect(stream, bar)
            synonyms: dict[str, str] = {}
            prepared = self._prepare(stream, inspected, synonyms, bar)
            report = self._report(inspected, prepared, synonyms, bar("agreement", len(self.agreement)))
            form = form_to_write(self.layout, stream.form, work, self.dataset)
            if form != "none":
                writer = make_writer(form, work, inspected.features, most_captions(prepared.after))
                write_examples(stream, prepared.after, writer, bar("writing", len(inspected.examples)))
        shutil.rmtree(work / "hub", ignore_errors=True)
        table = self._document_frequencies(prepared)
        table.save(work / FILE_NAME)
        text = json.dumps(report_json(report), indent=2, ensure_ascii=False)
        (work / REPORT).write_text(text + "\n", encoding="utf-8")
        if finish is not None:
            finish(work, report, table)
        return report

    def _inspect(self, stream: RowStream, bar: Bar) -> Inspected:
        total = None if stream.form == "hub" else sum(check_layout(self.dataset)["splits"].values())
        advance = bar("reading images", total)
        inspected = inspect(stream, thumbnails=self.contact_sheet, seed=self.seed, advance=advance)
        if self.on_bad_example == "error":
            refuse_bad(inspected.bad)
        if not inspected.examples:
            raise DataError(f"{self.dataset}: no usable example is left; {len(inspected.bad)} are bad")
        return inspected

    def _prepare(
        self, stream: RowStream, inspected: Inspected, synonyms: dict[str, str], bar: Bar
    ) -> Prepared:
        examples = split_examples(
            inspected.examples, self.split_fractions, self.split_seed, whole=self.train_split
        )
        return prepare(
            examples,
            train_split=self.train_split,
            all_splits=self.all_splits,
            steps=self._steps(synonyms),
            selection=self.selection,
            kept_captions=self.kept_captions,
            scores=self._scores(stream, bar),
            seed=self.seed,
            drop_repeated_images=self.repeated_images == "drop",
        )

    def _steps(self, found: dict[str, str]) -> list[Step]:
        """The cleaning steps; ``found`` is filled with the synonyms when they are applied."""
        synonyms = None
        if "synonyms" in self.cleaning:
            synonyms = synonym_step(
                caption_scorers.word_embedding(self.sentence_model),
                distance=self.synonym_distance,
                min_samples=self.synonym_min_samples,
                rare=self.synonym_rare,
                related=wordnet_related() if self.synonym_wordnet else None,
                found=found,
            )
        return parse_steps(self.cleaning, synonyms)

    def _scores(self, stream: RowStream, bar: Bar) -> CorpusScores | None:
        """What the selection scores captions with; None where it needs no scores."""
        if self.selection == "consensus":
            return lambda examples: sibling_scores(
                [e.references for e in examples],
                consensus_scores([e.references for e in examples], self.train_split),
            )
        if self.selection == "clipscore":
            clip = caption_scorers.clip_scorer(self.clip_model)
            return lambda examples: image_scores(
                stream, examples, clip.cosines, bar("CLIPScore", len(examples))
            )
        return None

    def _report(
        self,
        inspected: Inspected,
        prepared: Prepared,
        synonyms: dict[str, str],
        advance: Callable[[int], None],
    ) -> DataReport:
        scorers, missing = caption_scorers.agreement_scorers(self.agreement, self.sentence_model)
        sample = agreement_sample(prepared.before, self.agreement_images, self.seed)
        return DataReport(
            dataset=self.dataset,
            train_split=self.train_split,
            inspected=inspected,
            prepared=prepared,
            synonyms=synonyms,
            agreement=agreements(sample, scorers, lambda name: advance(1)) if sample else {},
            not_measured=missing,
            categories=read_categories(self.categories, self.dataset),
        )

    def _document_frequencies(self, prepared: Prepared) -> DocumentFrequencies:
        references = [e.references for e in prepared.after if e.split == self.train_split]
        return DocumentFrequencies.from_references(references, eos=self.eos, split=self.train_split)


def read_categories(file: str | None, dataset: str) -> dict[str, str]:
    """Image id -> category from a CSV file, by default ``index.csv`` in the dataset's folder; {} without one.

    Raises:
        DataError: a named file lacks a column.
    """
    path = Path(file or Path(dataset).expanduser() / "index.csv")
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    key = next((name for name in ("image_id", "image") if rows and name in rows[0]), None)
    if key is None or "category" not in rows[0]:
        if file is None:
            return {}
        raise DataError(
            f"{path}: expected the columns image_id (or image) and category; found {list(rows[:1])}"
        )
    return {Path(row[key]).stem if key == "image" else row[key]: row["category"] for row in rows}


def peak_memory_mb() -> int:
    """The most memory this process has used at a time, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KB on Linux


def print_summary(report: DataReport, output: Path, console: Console, seconds: float) -> None:
    """What was changed: a table before and after, a line per cleaning step, and where everything is."""
    table = PlainTable("", "before", "after", title=f"{report.dataset}: {report.train_split}")
    for name, before, after in summary_rows(report):
        table.add_row(name, before, after)
    console.print(table)
    for step in report.prepared.steps:
        line = (
            f"{step.name}: {step.changed:,} captions changed, {step.dropped:,} left out, "
            f"{step.captions:,} captions and {step.vocabulary:,} distinct words left"
        )
        console.print(plain(line))
    for name, reason in report.not_measured.items():
        console.print(plain(f"agreement by {name} was not measured: {reason}"))
    line = (
        f"{output}: {len(report.prepared.after):,} images in {seconds:.0f} s, at most {peak_memory_mb():,} MB"
        " of memory"
    )
    console.print(plain(line))
