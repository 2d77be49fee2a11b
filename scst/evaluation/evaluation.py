"""Caption a dataset, score the captions, and leave predictions, metrics and a report behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from scst.data.files import write_json, write_jsonl, write_text
from scst.data.terminal import PlainColumn, PlainTable
from scst.distributed.sharded_loader import map_across_ranks
from scst.errors import DataError
from scst.evaluation.caption_files import PREDICTIONS, CaptionPairs, read_pairs
from scst.evaluation.captioning import Caption, caption_images
from scst.evaluation.comparison import compare_with, other_evaluation
from scst.evaluation.decoding import Decoding, get_decoding
from scst.evaluation.evaluation_page import Report, report_html
from scst.evaluation.samples import (
    ScoredSamples,
    check_report_samples,
    distribution,
    sample_captions,
    spread_indices,
    training_sampling,
)
from scst.evaluation.training_log import TrainingStage, training_stages
from scst.metrics.bootstrap import MetricResult, check_metrics, metric_results, metric_scores, metrics_json
from scst.metrics.suite import METRICS, Corpus, MetricSettings

REPORT, METRICS_FILE = "report.html", "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """Captions a dataset, scores the captions and writes the results into a folder.

    ``Evaluation(prompt="caption en", output_dir="out", metrics=["cider_d"]).run(model, processor, dataset)``

    Attributes:
        prompt: instruction without the image token.
        output_dir: folder of the results, made if it does not exist; None: nothing is written.
        metrics: names in ``scst.metrics.suite.METRICS``.
        decoding, max_new_tokens, min_new_tokens, batch_size: as in :func:`caption_images`.
        seed: of sampled captions and of the bootstrap.
        settings: models and tables that metrics need.
        bootstrap_samples: resamples for the intervals.
        title: heading of table and report.
        adapter: folder whose training the report shows, when it holds a log.
        report_samples: images whose greedy caption the report shows beside sampled ones; 0: none.
        compare_with: output folder or predictions of another evaluation that the report compares with.
        console: where progress and table go; by default standard output.
    """

    prompt: str
    output_dir: str | Path | None
    metrics: Sequence[str]
    decoding: Decoding | str = "greedy"
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    batch_size: int = 16
    seed: int = 0
    settings: MetricSettings | None = None
    bootstrap_samples: int = 1000
    title: str = "evaluation"
    adapter: str | None = None
    report_samples: int = 0
    compare_with: str | None = None
    console: Console = field(default_factory=Console)

    def run(
        self, model: torch.nn.Module, processor: Any, dataset: datasets.Dataset
    ) -> dict[str, dict[str, Any]]:
        """Evaluate a policy on a dataset.

        Writes into ``output_dir`` ``predictions.jsonl`` (``image_id, caption, references, ended_by_eos``),
        ``report.html`` and, last and atomically, ``metrics.json``: where it is, the evaluation is complete.
        An older one is removed first. Of several processes each captions a part of the images; the main one
        scores and writes.

        Args:
            model, processor: a captioning model, with or without adapter, and its processor.
            dataset: rows of ``image``, ``references`` and ``image_id``.

        Returns:
            The contents of ``metrics.json``; ``{}`` on other processes than the main one.

        Raises:
            RecipeError, DataError, ScstError: of :meth:`check`, or missing columns, no rows, or an evaluation
                to compare with that is about other images; all before the first caption is generated.
        """
        self.check()
        _check_columns(dataset)
        other = self._other(dataset)
        folder = None if self.output_dir is None else Path(self.output_dir)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # written last, and so the sign of a complete evaluation: that of an earlier one must go first
            (folder / METRICS_FILE).unlink(missing_ok=True)
        captions = map_across_ranks(partial(self._caption, model, processor, dataset), len(dataset))
        if not PartialState().is_main_process:
            return {}
        if folder is not None:
            write_jsonl(_prediction_rows(dataset, captions), folder / PREDICTIONS)
        corpus = _corpus(dataset, captions, self.settings)
        with self.console.status("scoring"):
            scores = metric_scores(corpus, self.metrics)
            results = metric_results(scores, len(captions), **self._bootstrap)
            against = None
            if other is not None:
                name = str(self.compare_with)
                against = compare_with(other, name, corpus, scores, **self._bootstrap)
        if folder is not None:
            stages = training_stages(self.adapter)
            sampled = self._samples(model, processor, corpus, stages)
            about = self._subtitle(len(captions))
            page = Report(self.title, about, corpus, results, stages, *sampled, against)
            write_text(folder / REPORT, report_html(page))
            write_json(folder / METRICS_FILE, metrics_json(results))
        self.console.print(results_table(self.title, results))
        return metrics_json(results)

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"bootstrap_samples": self.bootstrap_samples, "seed": self.seed}

    @property
    def _decoding(self) -> Decoding:
        return get_decoding(self.decoding)

    def check(self) -> None:
        """Refuse what cannot be done; needs neither model nor dataset.

        Raises:
            RecipeError: unknown preset or metric, or a number out of range. DataError: ``compare_with`` holds
                no captions with references. ScstError: a metric lacks something, such as Java.
        """
        check_metrics(self.metrics, self.settings, columns=("images", "ended_by_eos"))
        get_decoding(self.decoding)
        check_report_samples(self.report_samples)
        if self.compare_with is not None:
            read_pairs(self.compare_with)

    def _other(self, dataset: datasets.Dataset) -> CaptionPairs | None:
        """The evaluation to compare with, in the order of the dataset."""
        if self.compare_with is None:
            return None
        image_ids = [str(image_id) for image_id in dataset["image_id"][:]]
        return other_evaluation(self.compare_with, image_ids, dataset["references"][:])

    def _caption(
        self, model: torch.nn.Module, processor: Any, dataset: datasets.Dataset, rows: range
    ) -> list[Caption]:
        """Captions of some rows."""
        captions_of = partial(
            caption_images,
            *(model, processor, dataset.select(rows)["image"], self.prompt, self._decoding),
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return _with_progress(captions_of, len(rows), f"captioning: {self.title}", self.console)

    def _samples(
        self, model: torch.nn.Module, processor: Any, corpus: Corpus, stages: Sequence[TrainingStage]
    ) -> tuple[list[ScoredSamples], str]:
        """Sample captions for the report from the last stage's distribution, and describe it in words."""
        if not self.report_samples:
            return [], ""
        sampling = training_sampling(
            stages[-1].recipe if stages else {},
            max_new_tokens=self._decoding.max_new_tokens or self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
        )
        indices = spread_indices(len(corpus.captions), self.report_samples)
        limits = {"batch_size": self.batch_size, "seed": self.seed}
        with self.console.status("sampling captions for the report"):
            found = sample_captions(model, processor, corpus, indices, self.prompt, sampling, **limits)
        return found, distribution(sampling)

    def _subtitle(self, count: int) -> str:
        limit = f"at most {self.max_new_tokens} tokens"
        return f"{count} images · prompt “{self.prompt}” · {self._decoding} · {limit}"


def _check_columns(dataset: datasets.Dataset) -> None:
    missing = {"image", "references", "image_id"} - set(dataset.column_names)
    if missing:
        raise DataError(f"evaluation: dataset lacks {sorted(missing)}; it has {dataset.column_names}")
    if not len(dataset):
        raise DataError("evaluation: the dataset has no rows; check `eval_split`")


def _with_progress(
    caption: Callable[..., list[Caption]], total: int, description: str, console: Console
) -> list[Caption]:
    columns = PlainColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        return caption(progress=partial(progress.advance, task))


def _corpus(
    dataset: datasets.Dataset, captions: Sequence[Caption], settings: MetricSettings | None
) -> Corpus:
    return Corpus(
        [caption.text for caption in captions],
        dataset["references"][:],
        images=dataset["image"],
        image_ids=dataset["image_id"][:],
        ended_by_eos=[caption.ended_by_eos for caption in captions],
        settings=settings or MetricSettings(),
    )


def _prediction_rows(dataset: datasets.Dataset, captions: Sequence[Caption]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id,
            "caption": caption.text,
            "references": list(references),
            "ended_by_eos": caption.ended_by_eos,
        }
        for image_id, caption, references in zip(
            dataset["image_id"], captions, dataset["references"], strict=True
        )
    ]


def results_table(title: str, results: Mapping[str, MetricResult]) -> PlainTable:
    """Metrics with their intervals."""
    table = PlainTable("metric", "value", "95 % interval", title=title)
    for name, result in results.items():
        low, high = result.ci95
        table.add_row(METRICS[name].title, f"{result.value:.4f}", f"{low:.4f} - {high:.4f}")
    return table
