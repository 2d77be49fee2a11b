"""Caption a dataset, score the captions, and leave predictions, metrics and a report behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rewards.metrics import METRICS, Corpus, MetricSettings
from scst.data.shares import done_together
from scst.errors import DataError
from scst.evaluation.caption_files import PREDICTIONS
from scst.evaluation.captioning import Caption, caption_images
from scst.evaluation.decoding import Decoding, get_decoding
from scst.evaluation.metrics import MetricResult, check_metrics, metrics_json, score_captions
from scst.evaluation.report import report_html
from scst.records import write_json, write_jsonl, write_text

REPORT, METRICS_FILE = "report.html", "metrics.json"


def evaluate(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    prompt: str,
    output_dir: str | Path,
    decoding: Decoding | str = "greedy",
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    batch_size: int = 16,
    metrics: Sequence[str],
    settings: MetricSettings | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    title: str = "evaluation",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a policy on a dataset.

    Writes ``predictions.jsonl`` (``image_id, caption, references, ended_by_eos``), ``report.html`` and, last
    and atomically, ``metrics.json``: its presence means complete. An older one is removed first.

    Args:
        model, processor: a PaliGemma, with or without adapter, and its processor.
        dataset: ``datasets.Dataset`` of ``image``, ``references`` and ``image_id``.
        prompt: instruction without the image token.
        output_dir: made if it does not exist.
        decoding, max_new_tokens, min_new_tokens, batch_size: as in :func:`caption_images`.
        seed: of sampled captions and of the bootstrap.
        metrics: names in ``rewards.metrics.METRICS``.
        settings: models and tables that metrics need.
        bootstrap_samples: resamples for the intervals.
        title: heading of table and report.
        console: where progress and table go; by default standard output.

    Several processes caption a share of the images each; the main one scores and writes.

    Returns:
        The contents of ``metrics.json``; on other processes than the main one nothing.

    Raises:
        RecipeError: unknown preset or metric. DataError: missing columns, no rows. ScstError: no Java. All of
            these before the first caption is generated.
    """
    check_metrics(metrics, settings, columns=("images", "ended_by_eos"))
    _check_columns(dataset)
    decoding, console, folder = get_decoding(decoding), console or Console(), Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).unlink(missing_ok=True)

    def caption(rows: range) -> list[Caption]:
        captions_of = partial(
            caption_images,
            *(model, processor, dataset.select(rows)["image"], prompt, decoding),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        return _with_progress(captions_of, len(rows), f"captioning: {title}", console)

    captions = done_together(caption, len(dataset))
    if not PartialState().is_main_process:
        return {}
    write_jsonl(_prediction_rows(dataset, captions), folder / PREDICTIONS)
    corpus = _corpus(dataset, captions, settings)
    with console.status("scoring"):
        results = score_captions(corpus, metrics, bootstrap_samples=bootstrap_samples, seed=seed)
    subtitle = f"{len(captions)} images · prompt “{prompt}” · {decoding} · at most {max_new_tokens} tokens"
    _write_report(folder / REPORT, title, subtitle, corpus, results)
    write_json(folder / METRICS_FILE, metrics_json(results))
    console.print(results_table(title, results))
    return metrics_json(results)


def _check_columns(dataset: Any) -> None:
    missing = {"image", "references", "image_id"} - set(dataset.column_names)
    if missing:
        raise DataError(f"evaluation: dataset lacks {sorted(missing)}; it has {dataset.column_names}")
    if not len(dataset):
        raise DataError("evaluation: the dataset has no rows; check `eval_split`")


def _with_progress(
    caption: Callable[..., list[Caption]], total: int, description: str, console: Console
) -> list[Caption]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        return caption(progress=partial(progress.advance, task))


def _corpus(dataset: Any, captions: Sequence[Caption], settings: MetricSettings | None) -> Corpus:
    return Corpus(
        [caption.text for caption in captions],
        list(dataset["references"]),
        images=dataset["image"],
        image_ids=list(dataset["image_id"]),
        ended_by_eos=[caption.ended_by_eos for caption in captions],
        settings=settings or MetricSettings(),
    )


def _prediction_rows(dataset: Any, captions: Sequence[Caption]) -> list[dict[str, Any]]:
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


def _write_report(
    path: Path,
    title: str,
    subtitle: str,
    corpus: Corpus,
    results: Mapping[str, MetricResult],
) -> None:
    page = report_html(
        title=title,
        subtitle=subtitle,
        results=results,
        captions=corpus.captions,
        references=corpus.references,
        image_ids=corpus.image_ids,
        image=lambda index: corpus.images[index],
    )
    write_text(path, page)


def results_table(title: str, results: Mapping[str, MetricResult]) -> Table:
    """Metrics with their intervals."""
    table = Table("metric", "value", "95 % interval", title=title)
    for name, result in results.items():
        low, high = result.ci95
        table.add_row(METRICS[name].title, f"{result.value:.4f}", f"{low:.4f} - {high:.4f}")
    return table
