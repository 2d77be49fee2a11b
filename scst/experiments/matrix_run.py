"""A matrix from its plan to its files: run what is missing, then write tables, figures and the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from scst.data.files import write_json, write_text
from scst.data.terminal import plain
from scst.errors import RunStopped
from scst.experiments import results as measured
from scst.experiments import tables
from scst.experiments.figures import draw_figures
from scst.experiments.matrix_page import matrix_html
from scst.experiments.matrix_plan import Plan
from scst.experiments.runner import Outcome, Runner

FIGURES = "figures"


def run_matrix(
    plan: Plan,
    output_dir: str | Path,
    *,
    scripts: Mapping[str, Sequence[str]],
    main_metric: str = "cider_d",
    launcher: Sequence[str] = (sys.executable,),
    console: Console | None = None,
) -> list[measured.Result]:
    """Run what a plan still lacks, write the tables after every model, and figures and page at the end.

    Args:
        plan: of :func:`scst.experiments.matrix_plan.make_plan`.
        output_dir: the one that the plan was made for.
        scripts, launcher: as of :class:`scst.experiments.runner.Runner`.
        main_metric: of ablations and robustness; else the first metric there is.
        console: where progress and the table go; by default standard output.

    Returns:
        The result of every cell.

    Raises:
        RunStopped: when cells have failed; everything else is done and written.
        Interrupted: after SIGTERM or SIGINT.
    """
    console, root = console or Console(), Path(output_dir)
    runner = Runner(scripts, launcher, console)
    outcome = runner.run(plan, root, lambda so_far: write_tables(plan, root, so_far.errors, main_metric))
    results = write_tables(plan, root, outcome.errors, main_metric)
    write_figures(plan, root, results, main_metric)
    console.print(tables.rich_table(_title(root), measured.rows_of(results), measured.metric_names(results)))
    console.print(plain(f"{_summary(results, outcome)}; {root / 'matrix.html'}"))
    failed = [result for result in results if result.state != "complete"]
    if failed:
        names = "\n".join(f"  {tables.label(result)}: {result.error}" for result in failed)
        raise RunStopped(f"{len(failed)} of {len(results)} cells have no result:\n{names}")
    return results


def _summary(results: list[measured.Result], outcome: Outcome) -> str:
    complete = sum(result.state == "complete" for result in results)
    trained = f"{len(outcome.seconds)} trainings in {sum(outcome.seconds.values()):.0f} s"
    return f"{complete} of {len(results)} cells complete, {trained}"


def _title(root: Path) -> str:
    return f"Matrix {root.name}"


def write_tables(
    plan: Plan, root: Path, errors: Mapping[Path, str], main_metric: str
) -> list[measured.Result]:
    """Write ``matrix.md``, ``matrix.csv`` and ``matrix.json`` with the results so far; returns the cells."""
    results = measured.collect(plan, errors)
    rows = measured.rows_of(results)
    metric = measured.main_metric_of(results, main_metric)
    robustness = measured.robustness_of(rows, metric) if metric else []
    write_text(root / "matrix.md", tables.markdown(_title(root), results, rows, robustness, metric))
    write_text(root / "matrix.csv", tables.csv_text(results))
    content = tables.json_content(results, rows, robustness, metric, measured.trainings_table(plan))
    write_json(root / "matrix.json", content)
    return results


def write_figures(plan: Plan, root: Path, results: list[measured.Result], main_metric: str) -> None:
    """The PNG files and ``matrix.html``."""
    rows = measured.rows_of(results)
    metric = measured.main_metric_of(results, main_metric)
    robustness = measured.robustness_of(rows, metric) if metric else []
    figures = draw_figures(rows, robustness, measured.metric_names(results), metric, root / FIGURES)
    trainings = measured.trainings_table(plan)
    page = matrix_html(_title(root), results, rows, robustness, metric, trainings, figures, root / FIGURES)
    write_text(root / "matrix.html", page)
