"""How do start, memory and loading grow with the number of images?

    python benchmarks/data.py
    python benchmarks/data.py --images 4452 44521 445210 --work DIR --json measurements.json

For every size a RISC folder is generated (``generated_folder.py``: real JPEG files, each with bytes of its
own). Then each stage is started twice in processes of their own, with an empty memory of checks and with what
the first start has left, and measured to the end of its first step: two images, an embedded model of a few
million weights, so that data are most of what is measured. TRL's GRPO is started on the same folder, as its
users load one: paths and captions in a dataset, no image looked at. Wall-clock seconds depend on what else
the machine does; CPU seconds hardly.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parents[1]
SIZES = (4452, 44_521)
STAGES = ("sft", "rl")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=list(SIZES), metavar="N", help="sizes")
    parser.add_argument("--side", type=int, default=224, help="pixels of a picture [224]")
    parser.add_argument("--no_trl", action="store_true", help="leave TRL out")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where folders are made, and stay")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def start(stage: str, data: Path, work: Path, *flags: str) -> dict[str, Any]:
    """One start in a process of its own; the memory of checks is in ``work``."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "benchmarks.data_start", stage, str(data), str(work / "run"), *flags]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} ended without an answer:\n{answer.stderr[-2000:]}")
    return json.loads(lines[-1])


def make_adapter(work: Path) -> Path:
    """The adapter that the self-critical stage refines."""
    from scst.cli import sft

    folder = work / "adapter"
    flags = ["--config", "quickstart/sft", "--dataset", "embedded:scenes", "--max_train_images", "8"]
    flags += ["--max_steps", "1", "--save_steps", "1", "--output_dir", str(folder), "--overwrite", "true"]
    if not (folder / "run.json").is_file() and sft.main(flags):
        raise RuntimeError("no adapter could be trained")
    return folder


def measure_size(images: int, options: argparse.Namespace, work: Path, adapter: Path) -> dict[str, Any]:
    """All starts with one number of images."""
    from benchmarks.generated_folder import write_folder

    data = work / f"risc-{images}"
    if not data.is_dir():
        write_folder(data, images, options.side)
    found: dict[str, Any] = {"images": images}
    shutil.rmtree(work / "cache", ignore_errors=True)
    for stage in STAGES:
        flags = ["--adapter", str(adapter)] if stage == "rl" else []
        for which in ("first", "second"):
            found[f"{stage}_{which}"] = start(stage, data, work, *flags)
            report(images, f"{stage}, {which} start", found[f"{stage}_{which}"])
    found["load"] = start("load", data, work)
    print(f"{images:>9,} images  load_splits and collator: {found['load']}", flush=True)
    if not options.no_trl:
        found["trl"] = start("trl", data, work)
        report(images, "TRL's GRPO", found["trl"])
    return found


def report(images: int, title: str, used: dict[str, Any]) -> None:
    """One line for the reader."""
    print(
        f"{images:>9,} images  {title:<18} {used['seconds']:7.1f} s  {used['cpu_seconds']:7.1f} CPU s  "
        f"private {used['private_mb']:6.0f} MB  peak {used['peak_mb']:6.0f} MB",
        flush=True,
    )


def growth(sizes: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """From the smallest to the largest size: CPU seconds per million images, private bytes per image."""
    small, large = sizes[0], sizes[-1]
    more = large["images"] - small["images"]
    return {
        name: {
            "cpu_s_per_million": 1e6 * (large[name]["cpu_seconds"] - used["cpu_seconds"]) / more,
            "private_bytes_per_image": 2**20 * (large[name]["private_mb"] - used["private_mb"]) / more,
        }
        for name, used in small.items()
        if name != "images" and name != "load"
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    from benchmarks.record import circumstances, write

    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        adapter = make_adapter(work)
        sizes = [measure_size(images, options, work, adapter) for images in sorted(options.images)]
    found = {"sizes": sizes} | ({"growth": growth(sizes)} if len(sizes) > 1 else {})
    print(json.dumps(found.get("growth", {}), indent=2))
    command = " ".join(["python", "benchmarks/data.py", *argv])
    write(options.json, {"benchmark": "data", "command": command} | found | circumstances())


if __name__ == "__main__":
    main()
