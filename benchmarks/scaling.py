"""How do a rollout and a whole step grow with K, batch, image tokens, vocabulary and caption length?

    python benchmarks/scaling.py                                  (all sweeps; about 10 minutes on one thread)
    python benchmarks/scaling.py --sweeps samples --images 8 --json FILE

One size is varied at a time, the others stay at the base. A step is ``SCSTTrainer.training_step`` (rollout,
reward, scoring, backward) on a random model of PaliGemma's proportions. All captions have the same forced
length; the reward is a number made from the caption's text, so that no caption has advantage zero and none is
dropped. Seconds are CPU seconds, the best of --repetitions; ratios are to the first point of a sweep.
Target: step time at K=16 over K=1 at most 2.5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.models import MIDDLE_DECODERS, MIDDLE_VISION_LAYERS, PATCH
from benchmarks.record import circumstances, set_up, write

SWEEPS = {
    "samples": (1, 2, 4, 8, 16),
    "images": (1, 2, 4, 8),
    "image_tokens": (64, 256, 1024),
    "vocabulary": (4096, 32_768, 257_152),
    "tokens": (8, 16, 32),
}
"""Size -> the values it takes."""


def caption_number(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward between 0 and 1 that is a different number for every caption."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="which [all]")
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="PaliGemma 1 or 2 [1]")
    parser.add_argument("--images", type=int, default=4, metavar="B", help="images in a batch [4]")
    parser.add_argument("--samples", type=int, default=5, metavar="K", help="sampled captions per image [5]")
    parser.add_argument("--tokens", type=int, default=16, metavar="T", help="tokens of every caption [16]")
    parser.add_argument("--image_tokens", type=int, default=256, help="a square number [256]")
    parser.add_argument("--vocabulary", type=int, default=8192, metavar="V", help="vocabulary [8192]")
    parser.add_argument("--width", type=int, default=512, help="of decoder and vision tower [512]")
    parser.add_argument("--repetitions", type=int, default=2, help="timed steps at every point [2]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def build_model(sizes: dict[str, int], image_size: int) -> tuple[Any, Any]:
    """A random model with a new adapter, and its processor."""
    import torch

    from scst.adapters.lora import add_lora
    from tests.support.tiny import build_model as build_tiny_model
    from tests.support.tiny import build_processor

    decoder = dict(MIDDLE_DECODERS[sizes["version"]])
    processor = build_processor(image_size=image_size, patch=PATCH)
    model = build_tiny_model(
        processor,
        version=sizes["version"],
        image_size=image_size,
        patch=PATCH,
        width=sizes["width"],
        layers=MIDDLE_VISION_LAYERS,
        intermediate_size=decoder.pop("mlp") * sizes["width"],
        vocab_size=sizes["vocabulary"],
        **decoder,
    ).requires_grad_(False)
    torch.manual_seed(1)
    return add_lora(model, targets="decoder-attention", rank=16, alpha=32.0), processor


def build_step(sizes: dict[str, int], output_dir: str) -> tuple[Any, dict[str, Any]]:
    """A trainer that has not started, and a batch for its ``training_step``."""
    from transformers import TrainingArguments

    from rewards.mixture import RewardMixture
    from scst.data.collate import SCSTCollator
    from scst.rl.trainer import SCSTTrainer
    from scst.types import Sampling
    from tests.support.tiny import noise_images

    image_size = PATCH * round(sizes["image_tokens"] ** 0.5)
    model, processor = build_model(sizes, image_size)
    rows = [
        {"image": image, "references": ["a plane", "a river"], "image_id": str(i)}
        for i, image in enumerate(noise_images(sizes["images"], image_size))
    ]
    collator = SCSTCollator(processor, "caption en")
    trainer = SCSTTrainer(
        model,
        TrainingArguments(output_dir, report_to="none", use_cpu=True),
        train_dataset=rows,
        data_collator=collator,
        processor=processor,
        sampling=Sampling(sizes["samples"], max_new_tokens=sizes["tokens"], min_new_tokens=sizes["tokens"]),
        rewards=RewardMixture([caption_number]),
    )
    return trainer, collator(rows)


def measure(sizes: dict[str, int], repetitions: int) -> dict[str, float]:
    """CPU seconds of the rollout and of the whole step: the best of some, after one to warm up.

    Raises:
        RuntimeError: when a caption was shorter than asked or not scored.
    """
    from benchmarks.stopwatch import Stopwatch, TimedMetrics

    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = build_step(sizes, folder)
        stopwatch = Stopwatch(trainer.args.device)
        trainer.metrics = TimedMetrics(trainer.args.device, stopwatch)
        rollouts, steps = [], []
        for _ in range(repetitions + 1):
            stopwatch.phases.clear()
            started = stopwatch.now()
            trainer.training_step(trainer.model, dict(batch))
            steps.append(stopwatch.now() - started)
            rollouts.append(stopwatch.phases["rollout"])
            trainer.model.zero_grad()
        check_work(trainer.last_step, sizes)
    return {"rollout_s": round(min(rollouts[1:]), 4), "step_s": round(min(steps[1:]), 4)}


def check_work(step: Any, sizes: dict[str, int]) -> None:
    """Every point must have sampled and scored B * K captions of T tokens, or its time means nothing."""
    expected = (sizes["images"], sizes["samples"], sizes["tokens"])
    mask = step.rollout.completion_mask
    if tuple(mask.shape) != expected or not mask.all() or (step.advantages == 0).any():
        raise RuntimeError(f"expected {expected} tokens, all scored, got {tuple(mask.shape)}")


def sweep(name: str, base: dict[str, int], repetitions: int) -> list[dict[str, float]]:
    """Measurements at every value of one size, with their growth over the first."""
    points: list[dict[str, float]] = []
    for value in SWEEPS[name]:
        point = {name: value, **measure(base | {name: value}, repetitions)}
        first = points[0] if points else point
        for part in ("rollout", "step"):
            point[f"{part}_growth"] = round(point[f"{part}_s"] / first[f"{part}_s"], 3)
        points.append(point)
        print(f"{name} {value}: step {point['step_s']:.2f} s", file=sys.stderr, flush=True)
    return points


def print_table(results: dict[str, list[dict[str, float]]], base: dict[str, int]) -> None:
    """One table of all sweeps."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="base: " + ", ".join(f"{name} {value}" for name, value in base.items()))
    for column in ("size", "rollout", "growth", "step", "growth"):
        table.add_column(column, justify="left" if column == "size" else "right")
    for name, points in results.items():
        for point in points:
            table.add_row(
                f"{name} {point[name]:,}",
                f"{point['rollout_s']:.2f} s",
                f"{point['rollout_growth']:.2f}x",
                f"{point['step_s']:.2f} s",
                f"{point['step_growth']:.2f}x",
            )
        table.add_section()
    Console().print(table)


def record_of(results: dict[str, Any], base: dict[str, int], argv: list[str]) -> dict[str, Any]:
    """The measurements with what is needed to repeat them."""
    command = " ".join(["python benchmarks/scaling.py", *argv])
    record: dict[str, Any] = {"benchmark": "scaling", "command": command}
    if "samples" in results:
        record["step_growth_k16_over_k1"] = results["samples"][-1]["step_growth"]
    return record | {
        "base": base,
        "sweeps": results,
        **circumstances(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and record when asked."""
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    set_up(options.threads)
    base = {name: getattr(options, name) for name in ("version", "width", *SWEEPS)}
    results = {name: sweep(name, base, options.repetitions) for name in options.sweeps}
    print_table(results, base)
    write(options.json, record_of(results, base, argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
