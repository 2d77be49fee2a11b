"""Faults injected into real training runs of both stages, and a table of what became of them.

    python -m tests.chaos.run                     (what `make chaos` runs: 40 kills and every fault, minutes)
    python -m tests.chaos.run --short             (part of `make test`: 4 kills, every fault once)
    python -m tests.chaos.run --kills 200 --seed 7 --json outcomes.json

Exits 0 when every fault was survived. The model is tiny: what is tested is the machinery around it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console
from rich.table import Table

from tests.chaos import faults, launchers, starts
from tests.chaos.kills import Outcome, kill_repeatedly
from tests.chaos.lab import Lab, Workload
from tests.support.preloaded import preload

WORKLOADS = [Workload(stage, processes) for stage in ("sft", "scst") for processes in (1, 2)]


def main() -> int:
    """Run the suite; the exit code says whether all was survived."""
    options = _options()
    preload()
    console = Console(width=None if sys.stdout.isatty() else 140)
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="scst-chaos-") as folder:
        lab = Lab(Path(folder))
        lab.build()
        for outcome in _outcomes(lab, options):
            console.print(_line(outcome))
            outcomes.append(outcome)
    console.print(_table(outcomes, time.monotonic() - started))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return int(any(outcome.survived < outcome.injected for outcome in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="fewer kills, every fault once")
    parser.add_argument("--kills", type=int, help="SIGKILLs over all workloads; default 40, with --short 4")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the events to kill at, and of the order of the faults"
    )
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    options = parser.parse_args()
    options.kills = options.kills or (4 if options.short else 40)
    return options


def _outcomes(lab: Lab, options: argparse.Namespace) -> Iterator[Outcome]:
    """What became of the faults, in an order drawn from the seed: none may depend on another."""
    jobs = [
        lambda w=w, n=n: kill_repeatedly(lab, w, n, random.Random(f"{options.seed} {w.name}"))
        for w, n in _shares(options.kills, options.short)
    ]
    jobs += [lambda f=f: [f()] for f in _faults(lab, options.short)]
    random.Random(options.seed).shuffle(jobs)
    for job in jobs:
        yield from job()


def _shares(kills: int, short: bool) -> list[tuple[Workload, int]]:
    """How the kills are spread; the short form kills one stage, in one process and in two."""
    weights = [0, 0, 1, 1] if short else [1, 1, 1, 1]
    counts = [kills * weight // sum(weights) for weight in weights]
    counts[0] += kills - sum(counts)
    return [(workload, count) for workload, count in zip(WORKLOADS, counts, strict=True) if count]


def _faults(lab: Lab, short: bool) -> list[Callable[[], Outcome]]:
    """Every fault; the short form makes each happen in one workload only."""
    import signal

    sft, _, scst, scst_2 = WORKLOADS
    everywhere = {
        faults.vanished_dataset: [sft] if short else WORKLOADS,
        faults.ruined_numbers: [scst] if short else WORKLOADS,
        starts.two_runs_at_once: [sft] if short else WORKLOADS,
    }
    jobs = [lambda f=f, w=w: f(lab, w) for f, workloads in everywhere.items() for w in workloads]
    for number, workloads in ((signal.SIGTERM, [scst_2]), (signal.SIGINT, [sft])):
        for workload in workloads if short else WORKLOADS:
            jobs.append(lambda n=number, w=workload: faults.told_to_stop(lab, w, n))
    jobs += [lambda f=f: f(lab) for f in (faults.told_twice, faults.full_disk, faults.read_only_output)]
    damages = ["one bit"] if short else ["one bit", "cut", "file lost", "seal"]
    jobs += [lambda d=d: faults.corrupt_checkpoint(lab, d) for d in damages]
    jobs += [
        lambda h=h: faults.dying_rank(lab, h) for h in (["exception"] if short else ["exception", "SIGKILL"])
    ]
    jobs += [lambda: faults.stuck_reward(lab)]
    if short:
        return jobs
    whole = [lambda f=f: f(lab) for f in (starts.killed_replacement, faults.launcher)]
    return [*jobs, *whole, *launchers.jobs(lab)]


def _line(outcome: Outcome) -> str:
    mark = (
        "[green]survived[/green]"
        if outcome.survived == outcome.injected
        else "[bold red]NOT SURVIVED[/bold red]"
    )
    return f"{mark} {outcome.fault} ({outcome.survived} of {outcome.injected}) {outcome.note}"


def _table(outcomes: list[Outcome], seconds: float) -> Table:
    table = Table(title="faults", title_justify="left")
    for column in ("fault", "injected", "survived", "lost steps, mean", "at most", "what was seen"):
        table.add_column(column, justify="left" if column in ("fault", "what was seen") else "right")
    for o in outcomes:
        mean = f"{sum(o.lost) / len(o.lost):.1f}" if o.lost else "-"
        table.add_row(o.fault, str(o.injected), str(o.survived), mean, str(max(o.lost, default="-")), o.note)
    injected, survived = (sum(getattr(o, name) for o in outcomes) for name in ("injected", "survived"))
    lost = [steps for outcome in outcomes for steps in outcome.lost]
    table.add_section()
    mean = f"{sum(lost) / max(1, len(lost)):.1f}"
    table.add_row(
        "all",
        str(injected),
        str(survived),
        mean,
        str(max(lost, default=0)),
        f"{seconds:.0f} s; runs of 8 steps",
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
