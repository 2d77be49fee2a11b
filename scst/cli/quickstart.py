"""The whole job on the bundled model and data: base -> SFT -> SCST, each evaluated.

    scst quickstart                    (what `make quickstart` runs)
    python launch/quickstart.py        (from a clone)

Runs five commands, which it prints as a user would type them, then shows the three models side by side.
Leaves everything in outputs/quickstart/{base,sft,scst}. Flags are passed on to both training stages, e.g.
--seed 2.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

OUTPUT = "outputs/quickstart"


def commands(flags: Sequence[str]) -> list[list[str]]:
    """The arguments of ``scst``, command by command."""
    on_cpu = ["--accelerate_config", "cpu"]
    evaluate = ["evaluate", "--config", "quickstart/evaluate", "--output_dir"]
    return [
        ["sft", *on_cpu, "--config", "quickstart/sft", *flags],
        ["rl", *on_cpu, "--config", "quickstart/scst", *flags],
        [*evaluate, f"{OUTPUT}/base"],
        [*evaluate, f"{OUTPUT}/sft", "--adapter", f"{OUTPUT}/sft"],
        [*evaluate, f"{OUTPUT}/scst", "--adapter", f"{OUTPUT}/scst"],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run every command; stop at the first that fails, with its exit code."""
    flags = list(sys.argv[1:] if argv is None else argv)
    if "--help" in flags or "-h" in flags:
        print((__doc__ or "").strip())
        return 0
    environment = {"OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8))} | os.environ
    started = time.time()
    for command in commands(flags):
        print(f"\n$ scst {shlex.join(command)}", flush=True)
        code = run_child([sys.executable, "-m", "scst.cli", *command], environment)
        if code:
            print(f"error: this command ended with exit code {code}", file=sys.stderr)
            return code
    summarise(time.time() - started)
    return 0


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process to its end; SIGTERM is passed on to it, and the exit code is that of a shell.

    SIGINT is not passed on: a terminal sends it to the child as well. This process waits for the child, which
    saves a checkpoint before it ends.
    """
    child: subprocess.Popen[bytes] | None = None
    terminated = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        if child is not None:
            child.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        child = subprocess.Popen(command, env=environment)
        if terminated:  # between the handler and the start of the child
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def summarise(seconds: float) -> None:
    """Show the metrics of the three models, some captions side by side, and where the files are."""
    from rich.console import Console

    from scst.evaluation.side_by_side import captions_table, comparison_table

    console = Console()
    runs = {name: Path(OUTPUT) / name for name in ("base", "sft", "scst")}
    console.print(
        captions_table(runs, images=4, title="the same held-out scenes, captioned by the three models")
    )
    console.print(comparison_table(runs, title="held-out scenes"))
    console.print(
        f"Done in {seconds:.0f} s. Adapters, metrics.json, predictions.jsonl and report.html are in "
        f"{OUTPUT}/{{base,sft,scst}}."
    )


if __name__ == "__main__":
    sys.exit(main())
