"""The whole job on data and a model that the project brings along: base -> SFT -> SCST, each evaluated.

    python launch/quickstart.py        (what `make quickstart` runs)

Five commands, exactly as a researcher would type them, then a table of the three models side by side. Leaves
everything in outputs/quickstart/{base,sft,scst}. Flags are passed to both training stages, e.g. --seed 2.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # launch/ itself would shadow the package `scst`

OUTPUT = "outputs/quickstart"


def commands(flags: list[str]) -> list[list[str]]:
    """The commands of the quickstart in order; relative to the project's root."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    evaluate = ["launch/evaluate.py", "--config", "recipes/quickstart/evaluate.yaml", "--output_dir"]
    return [
        [*launch, "launch/sft.py", "--config", "recipes/quickstart/sft.yaml", *flags],
        [*launch, "launch/scst.py", "--config", "recipes/quickstart/scst.yaml", *flags],
        [*evaluate, f"{OUTPUT}/base"],
        [*evaluate, f"{OUTPUT}/sft", "--adapter", f"{OUTPUT}/sft"],
        [*evaluate, f"{OUTPUT}/scst", "--adapter", f"{OUTPUT}/scst"],
    ]


def main(flags: list[str]) -> int:
    """Run every command; stop at the first that fails, with its exit code."""
    if "--help" in flags or "-h" in flags:
        print(__doc__.strip())
        return 0
    environment = {"OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8))} | os.environ
    started = time.time()
    for command in commands(flags):
        print(f"\n$ python {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode
        if code:
            print(f"error: this command ended with exit code {code}", file=sys.stderr)
            return code
    summarise(time.time() - started)
    return 0


def summarise(seconds: float) -> None:
    """The metrics of the three models, some captions side by side, and where the files are."""
    from rich.console import Console

    from scst.evaluation.side_by_side import captions_table, comparison_table

    console = Console()
    runs = {name: ROOT / OUTPUT / name for name in ("base", "sft", "scst")}
    console.print(
        captions_table(runs, images=4, title="the same held-out scenes, captioned by the three models")
    )
    console.print(comparison_table(runs, title="held-out scenes"))
    console.print(
        f"Done in {seconds:.0f} s. Adapters, metrics.json, predictions.jsonl and report.html are in "
        f"{OUTPUT}/{{base,sft,scst}}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
