"""How much memory does one SCST step take, phase by phase?

    python benchmarks/memory.py
    python benchmarks/memory.py --shape 3b --quantization nf4 --precision bf16 --gradient_checkpointing
    python benchmarks/memory.py --device cuda --shape 3b --quantization nf4 --gradient_checkpointing

Steps of ours alone, as ``step.py`` makes them. A phase's peak is the size of the weights and what the process
grew by over its size with the loaded model: on CUDA what tensors occupied, on the CPU the resident size, and
so what the allocator keeps. (The whole resident size would count the checkpoint file, which stays
mapped.)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """Peaks in GB by phase over ``--repetitions`` steps."""
    import torch

    from benchmarks.step import build_world, weights_gb, write_references
    from benchmarks.ways import ours
    from scst.training.phase_meter import GB, PhaseMeter

    world = build_world(options, folder)
    model = world.load()
    with PhaseMeter(torch.device(options.device)).measure("loaded") as loaded:
        pass
    weights = weights_gb(model) * 1e9 / GB
    write_references(world, model)
    way = ours(world, model)
    for repetition in range(options.repetitions):
        way.reset()
        way.check(way.step(), world)
        print(f"step {repetition + 1} of {options.repetitions}", file=sys.stderr, flush=True)
    phases = {name: round(weights + peak - loaded.peak_gb, 3) for name, peak in way.meter.peak_gb.items()}
    return {
        "peak_gb": max(phases.values()),
        "phases": phases,
        "weights_gb": round(weights, 3),
        "loaded_gb": round(loaded.peak_gb, 3),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.record import circumstances, set_up, write
    from benchmarks.step import parse

    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    set_up(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    table = Table(title=f"{options.shape}, {options.quantization}: B={options.images}, K={options.samples}")
    for column in ("phase", "peak GB"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, peak in ({"weights": found["weights_gb"]} | found["phases"]).items():
        table.add_row(name, f"{peak:.2f}")
    Console().print(table)
    sizes = (
        "version",
        "shape",
        "layers",
        "images",
        "samples",
        "tokens",
        "quantization",
        "precision",
        "device",
    )
    write(
        options.json,
        {"benchmark": "memory", "command": " ".join(["python", "benchmarks/memory.py", *argv])}
        | found
        | {name: getattr(options, name) for name in (*sizes, "gradient_checkpointing")}
        | circumstances(),
    )


if __name__ == "__main__":
    main()
