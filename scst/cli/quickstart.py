"""The whole job on the bundled model and data: base -> SFT -> SCST, each evaluated.

    scst quickstart                    (what `make quickstart` runs)
    python launch/quickstart.py        (from a clone)

Runs five commands, which it prints as a user would type them, then shows the three models side by side.
Leaves everything in outputs/quickstart/{base,sft,scst}; where an earlier quickstart is there, in
outputs/quickstart-2 and so on; or give --output_dir DIR. Other flags are passed on to both training stages,
e.g. --seed 2. With --resume true or --overwrite true the earlier quickstart is continued or replaced.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from scst.data.visible import visible, visible_lines
from scst.distributed.parent_process import end_with_parent
from scst.errors import RecipeError

OUTPUT = "outputs/quickstart"
PARTS = ("base", "sft", "scst")


def commands(flags: Sequence[str], output: str = OUTPUT) -> list[list[str]]:
    """The arguments of ``scst``, command by command.

    Args:
        flags: for both training stages.
        output: folder of everything.
    """
    on_cpu = ["--accelerate_config", "cpu"]
    evaluate = ["evaluate", "--config", "quickstart/evaluate", "--output_dir"]
    return [
        ["sft", *on_cpu, "--config", "quickstart/sft", *_elsewhere(output, "sft"), *flags],
        [
            *("rl", *on_cpu, "--config", "quickstart/scst", *_elsewhere(output, "scst")),
            *(["--adapter", f"{output}/sft"] if output != OUTPUT else []),
            *flags,
        ],
        [*evaluate, f"{output}/base"],
        [*evaluate, f"{output}/sft", "--adapter", f"{output}/sft"],
        [*evaluate, f"{output}/scst", "--adapter", f"{output}/scst"],
    ]


def _elsewhere(output: str, part: str) -> list[str]:
    """The flag for another folder than the one that the recipe names."""
    return [] if output == OUTPUT else ["--output_dir", f"{output}/{part}"]


def folder_for(flags: Sequence[str]) -> tuple[str, list[str]]:
    """The folder of a quickstart, and the flags for its training stages.

    Without ``--output_dir`` it is one that holds no earlier quickstart, unless the flags say what is to
    become of that: ``--resume`` or ``--overwrite``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_dir")
    known, remaining = parser.parse_known_args(list(flags))
    if known.output_dir in ("", []):  # argparse makes a list of `--output_dir=--`
        raise RecipeError("--output_dir: expected the name of a folder")
    names = [flag.partition("=")[0] for flag in remaining]
    if known.output_dir or "--resume" in names or "--overwrite" in names:
        return known.output_dir or OUTPUT, remaining
    candidates = (OUTPUT if n == 1 else f"{OUTPUT}-{n}" for n in itertools.count(1))
    return next(folder for folder in candidates if not _is_used(Path(folder))), remaining


def _is_used(folder: Path) -> bool:
    return any(any((folder / part).glob("*")) for part in PARTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every command; stop at the first that fails, with its exit code."""
    flags = list(sys.argv[1:] if argv is None else argv)
    if "--help" in flags or "-h" in flags:
        print((__doc__ or "").strip())
        return 0
    try:
        output, flags = folder_for(flags)
    except RecipeError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    if output.startswith(f"{OUTPUT}-"):
        print(visible(f"{OUTPUT} holds an earlier quickstart; this one writes to {output}"))
    environment = {"OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8))} | os.environ
    started = time.time()
    for command in commands(flags, output):
        print(visible_lines(f"\n$ scst {shlex.join(command)}"), flush=True)
        code = run_child([sys.executable, "-m", "scst.cli", *command], environment)
        if code:
            print(f"error: this command ended with exit code {code}", file=sys.stderr)
            return code
    summarise(output, time.time() - started)
    return 0


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process to its end; SIGTERM and SIGHUP are passed on to it, and its exit code is that of a shell.

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
        signal.SIGHUP: signal.signal(signal.SIGHUP, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        child = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
        if terminated:  # between the handler and the start of the child
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def summarise(output: str, seconds: float) -> None:
    """Show the metrics of the three models, some captions side by side, and where the files are."""
    from rich.console import Console

    from scst.data.terminal import plain
    from scst.evaluation.side_by_side import captions_table, comparison_table

    console = Console()
    runs = {name: Path(output) / name for name in PARTS}
    console.print(
        captions_table(runs, images=4, title="the same held-out scenes, captioned by the three models")
    )
    console.print(comparison_table(runs, title="held-out scenes"))
    files = "Adapters, metrics.json, predictions.jsonl and report.html"
    console.print(plain(f"Done in {seconds:.0f} s. {files} are in {output}/{{base,sft,scst}}."))


if __name__ == "__main__":
    sys.exit(main())
