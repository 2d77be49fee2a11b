"""Malformed inputs for every command, and a table of what became of them.

    python -m tests.chaos.malformed.run                  (what `make chaos` runs: all of them, minutes)
    python -m tests.chaos.malformed.run --sample 150     (part of `make test`: as many, drawn with the seed)
    python -m tests.chaos.malformed.run --train          (also trains with every argument that passes)
    python -m tests.chaos.malformed.run --seed 7 --json inputs.json

Exits 0 when no input led to a traceback, a hang, a flood of output, or was wrongly accepted or refused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.chaos.malformed import file_cases, recipe_cases, training_cases
from tests.chaos.malformed.attack import ACCEPTED, CLEAR, FAULTS, Case, Outcome, attack_all
from tests.support.worlds import write_model, write_risc

ROUNDS = 150
"""Random damages per form of file."""
COLUMNS = (CLEAR, ACCEPTED, *FAULTS)


def all_cases(folder: Path, seed: int, rounds: int = ROUNDS) -> list[Case]:
    """Every case of every kind; the same for a seed.

    Args:
        folder: for the right files that cases are copies of.
        seed: of what is drawn.
        rounds: random damages per form of file.
    """
    files, generator = file_cases.Files(folder), random.Random(seed)
    return [
        *recipe_cases.recipe_values(generator),
        *recipe_cases.recipe_files(generator, 2 * rounds),
        *recipe_cases.flags(generator),
        *recipe_cases.argument_values(generator),
        *file_cases.datasets(files, generator, rounds),
        *file_cases.captions(files, generator, rounds),
        *file_cases.adapters(files, generator, rounds),
        *file_cases.records(files, generator, rounds),
    ]


def main() -> int:
    """Run them; the exit code says whether all were survived."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 160)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scst-right-files-") as folder:
        cases = all_cases(Path(folder), options.seed)
        if options.train:
            cases += training_cases.accepted_arguments(world_for_training(Path(folder) / "world"))
        if options.kind:
            cases = [case for case in cases if case.kind == options.kind]
        if options.sample:
            cases = random.Random(options.seed).sample(cases, min(options.sample, len(cases)))
        counts = attack_all(cases, lambda outcome: _say(console, outcome))
    console.print(table_of(counts, time.monotonic() - started))
    if options.json:
        options.json.write_text(json.dumps([[*key, count] for key, count in sorted(counts.items())]) + "\n")
    return int(any(result in FAULTS for _, result in counts))


def world_for_training(folder: Path) -> Path:
    """A tiny model, a dataset, and an adapter that one step was trained for."""
    from scst.cli import rl, sft

    assert rl.__doc__, "imported before the forks"
    write_model(folder / "model")
    write_risc(folder / "data")
    flags = [
        "--config",
        "quickstart/sft",
        "--model_name_or_path",
        folder / "model",
        "--dataset",
        folder / "data",
    ]
    flags += ["--quantization", "none", "--max_steps", "1", "--save_strategy", "no", "--max_new_tokens", "5"]
    process = multiprocessing.get_context("fork").Process(
        target=sft.main, args=([*map(str, flags), "--output_dir", str(folder / "adapter")],)
    )
    process.start()
    process.join()
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, help="only so many, drawn from all")
    parser.add_argument("--train", action="store_true", help="also train with what a dry run accepts")
    parser.add_argument("--kind", help="only inputs of one kind, e.g. 'caption files'")
    parser.add_argument("--seed", type=int, default=1, help="of random damage and of the sample")
    parser.add_argument("--json", type=Path, help="file for kind, result, count")
    return parser.parse_args()


def _say(console: Console, outcome: Outcome) -> None:
    case = outcome.case
    end = escape(outcome.output[-700:].strip())
    console.print(
        f"[bold red]{outcome.result}[/bold red] {escape(case.kind)}: {escape(repr(case.name))}\n{end}\n"
    )


def table_of(counts: Counter[tuple[str, str]], seconds: float) -> Table:
    """Kinds by result."""
    table = Table(title="malformed inputs", title_justify="left")
    table.add_column("kind")
    for column in ("tried", *COLUMNS):
        table.add_column(column, justify="right")
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    for kind in kinds:
        row = [counts[kind, column] for column in COLUMNS]
        table.add_row(kind, *(f"{number:,}" for number in (sum(row), *row)))
    table.add_section()
    totals = [sum(counts[kind, column] for kind in kinds) for column in COLUMNS]
    table.add_row(f"all, {seconds:.0f} s", *(f"{number:,}" for number in (sum(totals), *totals)))
    return table


if __name__ == "__main__":
    sys.exit(main())
