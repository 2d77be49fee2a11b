"""Draw the chart of the README from a recorded run of step.py.

python benchmarks/chart.py benchmarks/results/2026-11-21-step-cpu.json docs/step.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

WAYS = {"naive": "two generate calls,\nplain scoring", "trl": "TRL GRPOTrainer", "ours": "scst"}
PHASES = {
    "rollout": ("sampling", "#4477aa"),
    "reward": ("reward", "#ee6677"),
    "loss": ("scoring and gradients", "#ccbb44"),
}


def run_to_draw(record: dict) -> dict:
    """The measurement in a record of step.py: the record itself, or the last of several runs in it.

    Raises:
        ValueError: there is none; the message says what was expected.
    """
    runs = [run for run in (record, *record.get("runs", ())) if set(WAYS) <= set(run.get("times", ()))]
    if not runs:
        raise ValueError(
            f"expected a record of step.py, with times of {', '.join(WAYS)}; got {sorted(record)}"
        )
    return runs[-1]


def draw(record: dict, path: Path) -> None:
    """Seconds of a step by phase, one bar for every way; of several runs the last one."""
    record = run_to_draw(record)
    matplotlib.rcParams |= {"svg.hashsalt": "scst", "font.size": 11}
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    ways = list(WAYS)[::-1]
    left = [0.0] * len(ways)
    for phase, (label, colour) in PHASES.items():
        seconds = [record["times"][way]["phases"][phase] for way in ways]
        axes.barh([WAYS[way] for way in ways], seconds, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    ours = record["times"]["ours"]["seconds"]
    for row, way in enumerate(ways):
        total = record["times"][way]["seconds"]
        text = f" {total:.1f} s" + (f" = {total / ours:.1f}x" if way != "ours" else "")
        axes.text(left[row], row, text, va="center")
    sizes = record["sizes"]
    axes.set_xlabel(
        f"CPU seconds of one step: {sizes['images']} images, {sizes['samples']} samples of "
        f"{sizes['tokens']} tokens, {sizes['image_tokens']} image tokens"
    )
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
