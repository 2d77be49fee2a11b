"""How much faster is our SCST step than the usual one, and than TRL's?

    python benchmarks/step.py
    python benchmarks/step.py --version 2 --repetitions 3 --json FILE
    python benchmarks/step.py --device cuda --shape 3b --quantization nf4     (not run yet; needs no network)

One step is everything from B pictures to the updated adapter: B * K sampled captions of exactly --tokens
tokens, rewards, gradients, AdamW. In turn, in one run, on the same random model and pictures, from the same
adapter:

- naive: `generate` twice, pycocoevalcap's tokenizer and CIDEr, the prompt repeated for every sample
  (benchmarks/naive.py), as the published report of this system does it;
- TRL: GRPOTrainer and RLOOTrainer of trl, made to run correctly on PaliGemma (benchmarks/trl_paligemma.py),
  with our reward; they sample K captions too, and no greedy one;
- ours: SCSTTrainer with CIDEr-D, and with one optimisation off at a time (benchmarks/ways.py).

It refuses to report when a way sampled other lengths, left a caption unscored or a part of the adapter as it
was, or, in fp32, when naive and ours disagree about the greedy captions.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

PHASES = ("rollout", "reward", "loss")
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="PaliGemma 1 or 2 [1]")
    parser.add_argument(
        "--shape", choices=("middle", "3b"), default="middle", help="size of the random model [middle]"
    )
    parser.add_argument("--images", type=int, default=8, metavar="B", help="images in a step [8]")
    parser.add_argument("--samples", type=int, default=5, metavar="K", help="sampled captions per image [5]")
    parser.add_argument("--tokens", type=int, default=16, metavar="T", help="tokens of every caption [16]")
    parser.add_argument("--width", type=int, default=512, help="hidden size of the middle shape [512]")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of the middle shape [8192]")
    parser.add_argument("--layers", type=int, help="of the 3b shape's decoder and vision tower [all]")
    parser.add_argument("--repetitions", type=int, default=3, help="timed steps of each way, interleaved [3]")
    parser.add_argument(
        "--extra_repetitions",
        type=int,
        default=1,
        metavar="N",
        help="of RLOO and of ours with one optimisation off; 0: leave them out [1]",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure [cpu]")
    parser.add_argument(
        "--quantization", choices=("none", "nf4"), default="none", help="of the frozen decoder [none]"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of computation [fp32 on the CPU, bf16 on CUDA]"
    )
    parser.add_argument("--gradient_checkpointing", action="store_true", help="in all ways")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def build_world(options: argparse.Namespace, folder: Path) -> Any:
    """The checkpoint and everything that the ways share, the references still empty."""
    import torch
    from accelerate import PartialState

    from benchmarks.models import IMAGE_SIZE, ModelShape, write_checkpoint
    from benchmarks.stopwatch import Stopwatch
    from benchmarks.ways import World
    from scst.models.processors import load_processor
    from scst.types import Sampling
    from tests.support.tiny import noise_images

    PartialState(cpu=options.device == "cpu")
    shape = ModelShape(options.version, options.shape, options.width, options.vocabulary, options.layers)
    write_checkpoint(shape, folder / "model", device=options.device)
    rows = [
        {"image": image, "references": [], "image_id": f"image-{i}"}
        for i, image in enumerate(noise_images(options.images, IMAGE_SIZE))
    ]
    return World(
        folder=folder / "model",
        processor=load_processor(str(folder / "model")),
        rows=rows,
        sampling=Sampling(options.samples, max_new_tokens=options.tokens, min_new_tokens=options.tokens),
        device=options.device,
        quantization=options.quantization,
        gradient_checkpointing=options.gradient_checkpointing,
        stopwatch=Stopwatch(torch.device(options.device)),
        precision=options.precision or ("bf16" if options.device == "cuda" else "fp32"),
    )


def write_references(world: Any, model: Any) -> None:
    """Five references of every image: what the policy says itself, or a random model's rewards are all zero.

    The greedy caption is one of them, so it is worth more than the samples, and every advantage counts.
    """
    import torch

    from scst.models.policy import Policy
    from scst.models.prompts import PromptEncoder, forbidden_token_mask
    from scst.rollout import distribution
    from scst.rollout.decode import rollout
    from scst.types import Sampling

    length = world.sampling.max_new_tokens
    tokenizer = world.processor.tokenizer
    forbidden = forbidden_token_mask(world.processor, model.config.get_text_config().vocab_size)
    ids = [row["image_id"] for row in world.rows]
    with torch.autocast(world.device, torch.bfloat16, enabled=world.precision == "bf16"):
        written = rollout(
            Policy(model.eval(), forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id),
            world.processor,
            PromptEncoder.of(world.processor).prompt_batch(
                [row["image"] for row in world.rows], ["caption en"] * len(ids)
            ),
            Sampling(4, max_new_tokens=length, min_new_tokens=length),
            distribution.rollout_uniforms(ids, seed=1, step=0, num_samples=4, length=length),
        )
    for row, greedy, samples in zip(world.rows, written.greedy_captions, written.captions, strict=True):
        row["references"] = [greedy, *samples]


def build_ways(world: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Name -> way: naive, trl and ours first, the others behind them."""
    from benchmarks.ways import SWITCHES, naive, ours, trl

    model = world.load()
    write_references(world, model)
    ways = {"naive": naive(world), "trl": trl("grpo", world), "ours": ours(world, model)}
    if options.extra_repetitions:
        ways["trl_rloo"] = trl("rloo", world)
        for name, switch in SWITCHES.items():
            ways[name] = ours(world, model, f"ours, {name}", switch)
    return ways


def arithmetic_of(way: Any) -> float:
    """Floating-point operations of a step; also the warm-up."""
    from benchmarks.ways import Arithmetic

    with Arithmetic() as arithmetic:
        way.step()
    return float(arithmetic.flops)


def check_greedy(greedy: dict[str, Any], world: Any) -> None:
    """Naive and ours must have made the same greedy captions; rounding in bf16 may change one.

    Raises:
        RuntimeError: when in fp32 they differ.
    """
    if world.precision == "fp32" and not greedy["naive"].equal(greedy["ours"]):
        raise RuntimeError("greedy captions differ between `generate` and the shared rollout")


def measure(ways: dict[str, Any], world: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> seconds, wall-clock seconds, phases and peak memory of every timed step."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "wall": [], "phases": []} for name in ways}
    warm_up = int(options.device == "cuda")
    main, greedy = ("naive", "trl", "ours"), {}
    for repetition in range(warm_up + options.repetitions):
        for name, way in ways.items():
            limit = options.repetitions if name in main else options.extra_repetitions
            if repetition >= warm_up + limit:
                continue
            one, greedy[name] = measure_step(way, world)
            if repetition >= warm_up:
                for key, value in one.items():
                    found[name].setdefault(key, []).append(value)
            print(f"{repetition + 1}: {way.title} {one['seconds']:.2f} s", file=sys.stderr, flush=True)
        check_greedy(greedy, world)
    return found


def measure_step(way: Any, world: Any) -> tuple[dict[str, Any], Any]:
    """Make one step and check it; returns what was measured, and the greedy captions."""
    import torch

    way.reset()
    stopwatch, on_gpu = world.stopwatch, world.device == "cuda"
    stopwatch.phases.clear()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = stopwatch.now(), time.perf_counter()
    work = way.step()
    one: dict[str, Any] = {
        "seconds": stopwatch.now() - started[0],
        "wall": time.perf_counter() - started[1],
        "phases": dict(stopwatch.phases),
    }
    if on_gpu:
        one["peak_gb_above_weights"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    way.check(work, world)
    return one, work.greedy_ids


def weights_gb(model: Any) -> float:
    """Memory of a model's weights and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 1e9


def matmul_peak(world: Any) -> float:
    """FLOP per second of the best of ten large matrix products, on the clock of the steps."""
    import torch

    size = MATMUL_SIZE[world.device]
    dtype = torch.bfloat16 if world.precision == "bf16" else torch.float32
    a = torch.randn(size, size, dtype=dtype, device=world.device)
    times = []
    for _ in range(10):
        started = world.stopwatch.now()
        for _ in range(10):
            torch.mm(a, a)
        times.append(world.stopwatch.now() - started)
    return 20 * size**3 / min(times)


def summary(found: dict[str, Any], way: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of one way."""
    seconds = statistics.median(found["seconds"])
    phases = {phase: round(statistics.median(one[phase] for one in found["phases"]), 4) for phase in PHASES}
    result = {
        "title": way.title,
        "seconds": round(seconds, 4),
        "wall_seconds": round(statistics.median(found["wall"]), 4),
        "images_per_s": round(options.images / seconds, 4),
        "phases": phases | {"rest": round(seconds - sum(phases.values()), 4)},
        "all_seconds": [round(t, 4) for t in found["seconds"]],
        "all_wall_seconds": [round(t, 4) for t in found["wall"]],
    }
    if "peak_gb_above_weights" in found:
        above = max(found["peak_gb_above_weights"])
        result |= {"peak_gb_above_weights": round(above, 3), "weights_gb": round(weights_gb(way.model), 3)}
    return result


def record_of(
    results: dict[str, Any], flops: float, peak: float, options: argparse.Namespace, argv: list[str]
) -> dict[str, Any]:
    """The measurements with what is needed to repeat them."""
    from benchmarks.models import IMAGE_TOKENS
    from scst.training.run_folder.run_record import versions

    def ratio(name: str, key: str = "seconds") -> float | None:
        return round(results[name][key] / results["ours"][key], 3) if name in results else None

    sizes = ("version", "shape", "images", "samples", "tokens", "width", "vocabulary", "threads")
    rates = {name: result["images_per_s"] for name, result in results.items()}
    return {
        "benchmark": "step",
        "command": " ".join(["python", "benchmarks/step.py", *argv]),
        "clock": "wall" if options.device == "cuda" else "CPU seconds, child processes included",
        "images_per_s": rates,
        "ratio_naive": ratio("naive"),
        "ratio_trl": ratio("trl"),
        "ratio_trl_rloo": ratio("trl_rloo"),
        "ratio_naive_wall": ratio("naive", "wall_seconds"),
        "ratio_trl_wall": ratio("trl", "wall_seconds"),
        "times": results,
        "ours_tflop": round(flops / 1e12, 4),
        "matmul_peak_tflops": round(peak / 1e12, 4),
        "ours_share_of_peak": round(flops / results["ours"]["seconds"] / peak, 4),
        "sizes": {name: getattr(options, name) for name in sizes} | {"image_tokens": IMAGE_TOKENS},
        "quantization": options.quantization,
        "gradient_checkpointing": options.gradient_checkpointing,
        "versions": versions(),
        "machine": machine(options.device),
        "date": time.strftime("%Y-%m-%d"),
    }


def machine(device: str) -> str:
    """The hardware in words."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    from benchmarks.record import cpu

    return cpu()


def print_table(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Medians, phases and ratios as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"PaliGemma {options.version}, {options.shape}, {options.quantization}: B={options.images}, "
        f"K={options.samples}, T={options.tokens}, {record['sizes']['image_tokens']} image tokens\n"
        f"seconds: {record['clock']}"
    )
    columns = ["way", "s/step", *PHASES, "rest", "images/s", "way / ours"]
    on_gpu = options.device == "cuda"
    for column in columns + ["peak GB"] * on_gpu:
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    ours = record["times"]["ours"]["seconds"]
    for result in record["times"].values():
        cells = [f"{result['seconds']:.2f}", *(f"{s:.2f}" for s in result["phases"].values())]
        cells += [f"{result['images_per_s']:.2f}", f"{result['seconds'] / ours:.2f}x"]
        if on_gpu:
            cells.append(f"{result['weights_gb'] + result['peak_gb_above_weights']:.2f}")
        table.add_row(result["title"], *cells)
    console = Console()
    console.width = max(console.width, 130)
    console.print(table)
    console.print(
        f"naive / ours {record['ratio_naive']}x (target 6), TRL GRPO / ours {record['ratio_trl']}x "
        f"(target 4)\nours: {record['ours_tflop']} TFLOP a step, {record['ours_share_of_peak']:.0%} of the "
        f"measured matmul peak ({record['matmul_peak_tflops']} TFLOP/s)"
    )


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out what libraries say about themselves."""

    def call(*args: Any, **kwargs: Any) -> Any:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        return function(*args, **kwargs)

    return call


@quiet
def run(options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Build, check, and measure; returns the record."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(options, Path(folder))
        ways = build_ways(world, options)
        flops = arithmetic_of(ways["ours"])
        peak = matmul_peak(world)
        found = measure(ways, world, options)
        results = {name: summary(found[name], way, options) for name, way in ways.items()}
        return record_of(results, flops, peak, options, argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and record when asked."""
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    record = run(options, argv)
    print_table(record, options)
    if options.json:
        from scst.data.files import write_json

        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
