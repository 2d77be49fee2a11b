"""How much faster is one shared rollout than two `generate` calls?

    python benchmarks/rollout.py                                  (what `make bench` runs)
    python benchmarks/rollout.py --version 2 --repetitions 5 --json FILE

The usual way: `generate` once for the greedy captions and once with num_return_sequences=K for the samples.
Ours: every image encoded and prefilled once, greedy and sampled rows decoded together. Both make B greedy and
B * K sampled captions of exactly --tokens tokens with the same random model of PaliGemma's shape (224 px, 256
image tokens), in turn, and the greedy captions must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.models import (
    IMAGE_SIZE,
    IMAGE_TOKENS,
    MIDDLE_DECODERS,
    MIDDLE_VISION_LAYERS,
    MIDDLE_VOCABULARY,
    PATCH,
)
from benchmarks.record import circumstances, set_up, write

PROMPT = "caption en"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", type=int, choices=(1, 2), help="PaliGemma 1 or 2; default: both")
    parser.add_argument("--images", type=int, default=8, metavar="B", help="images in a batch [8]")
    parser.add_argument("--samples", type=int, default=5, metavar="K", help="sampled captions per image [5]")
    parser.add_argument("--tokens", type=int, default=16, metavar="T", help="tokens of every caption [16]")
    parser.add_argument(
        "--width", type=int, default=512, help="hidden size of decoder and vision tower [512]"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each way, interleaved [3]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def build_policy(version: int, options: argparse.Namespace) -> tuple[Any, Any]:
    """A random policy with the proportions of :data:`MIDDLE_DECODERS`, and its processor."""
    from scst.models.policy import Policy
    from scst.models.prompts import forbidden_token_mask
    from tests.support.tiny import build_model, build_processor

    decoder = dict(MIDDLE_DECODERS[version])
    processor = build_processor(image_size=IMAGE_SIZE, patch=PATCH)
    model = build_model(
        processor,
        version=version,
        image_size=IMAGE_SIZE,
        patch=PATCH,
        width=options.width,
        layers=MIDDLE_VISION_LAYERS,
        intermediate_size=decoder.pop("mlp") * options.width,
        vocab_size=MIDDLE_VOCABULARY,
        **decoder,
    )
    forbidden = forbidden_token_mask(processor, MIDDLE_VOCABULARY)
    tokenizer = processor.tokenizer
    return Policy(model, forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id), processor


def build_ways(version: int, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Name -> a function that makes one rollout and returns the greedy token ids (B, T)."""
    from scst.models.prompts import PromptEncoder
    from scst.rollout import distribution
    from scst.rollout.decode import rollout
    from scst.types import Sampling
    from tests.support.tiny import noise_images

    policy, processor = build_policy(version, options)
    images = noise_images(options.images, IMAGE_SIZE)
    prompts = [PROMPT] * options.images
    inputs = PromptEncoder.of(processor).encode_prompts(images, prompts)
    batch = PromptEncoder.of(processor).prompt_batch(images, prompts)
    sampling = Sampling(options.samples, max_new_tokens=options.tokens, min_new_tokens=options.tokens)
    uniforms = distribution.rollout_uniforms(
        [f"image-{i}" for i in range(options.images)],
        seed=0,
        step=0,
        num_samples=options.samples,
        length=options.tokens,
    )
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    common = length | {"suppress_tokens": policy.forbidden.nonzero().flatten().tolist()}
    plain_sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}

    def two_generate_calls() -> Any:
        greedy = policy.inner.generate(**inputs, **common, do_sample=False)
        sampled = policy.inner.generate(
            **inputs, **common, **plain_sampling, num_return_sequences=options.samples
        )
        check_shape(sampled, options.images * options.samples, inputs["input_ids"].shape[1] + options.tokens)
        return greedy[:, inputs["input_ids"].shape[1] :]

    def shared_rollout() -> Any:
        result = rollout(policy, processor, batch, sampling, uniforms)
        check_shape(result.completion_ids.flatten(0, 1), options.images * options.samples, options.tokens)
        return result.greedy_ids

    return {"naive": two_generate_calls, "ours": shared_rollout}


def check_shape(tokens: Any, rows: int, length: int) -> None:
    """Both ways must have made the same number of tokens, or their times mean nothing."""
    if tuple(tokens.shape) != (rows, length):
        raise RuntimeError(f"expected {rows} captions of {length} tokens, got {tuple(tokens.shape)}")


def measure(version: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both ways in CPU seconds, which other work on the machine distorts least, and their ratio.

    Raises:
        RuntimeError: when the two ways do not produce the same greedy captions.
    """
    ways = build_ways(version, options)
    greedy = {name: way() for name, way in ways.items()}  # also the warm-up
    if not greedy["naive"].equal(greedy["ours"]):
        raise RuntimeError(
            f"PaliGemma {version}: greedy tokens differ between `generate` and the shared rollout"
        )
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(options.repetitions):
        for name, way in ways.items():
            started = time.process_time(), time.perf_counter()
            way()
            cpu[name].append(time.process_time() - started[0])
            wall[name].append(time.perf_counter() - started[1])
        print(
            f"PaliGemma {version}, repetition {repetition + 1} of {options.repetitions}: "
            + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in cpu.items()),
            file=sys.stderr,
            flush=True,
        )
    return {
        "ratio": round(statistics.median(cpu["naive"]) / statistics.median(cpu["ours"]), 3),
        "ratio_wall": round(statistics.median(wall["naive"]) / statistics.median(wall["ours"]), 3),
        "naive_s": round(statistics.median(cpu["naive"]), 3),
        "ours_s": round(statistics.median(cpu["ours"]), 3),
        "all_cpu_s": {name: [round(t, 3) for t in times] for name, times in cpu.items()},
        "all_wall_s": {name: [round(t, 3) for t in times] for name, times in wall.items()},
        "greedy_equal": True,
        "distinct_greedy_tokens": len(set(greedy["ours"].flatten().tolist())),
    }


def record_of(results: dict[str, Any], options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """The measurements with what is needed to repeat them; ``ratio`` is that of the worst version."""
    sizes = {name: getattr(options, name) for name in ("images", "samples", "tokens", "width", "threads")}
    return {
        "benchmark": "rollout",
        "command": " ".join(["python", "benchmarks/rollout.py", *argv]),
        "ratio": min(result["ratio"] for result in results.values()),
        **results,
        "sizes": sizes
        | {
            "image_tokens": IMAGE_TOKENS,
            "vocabulary": MIDDLE_VOCABULARY,
            "vision_layers": MIDDLE_VISION_LAYERS,
        },
        **circumstances(),
    }


def print_table(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Medians and ratios as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"rollout: B={options.images}, K={options.samples}, T={options.tokens}, "
        f"{IMAGE_TOKENS} image tokens, {options.threads} thread(s), "
        f"median CPU seconds of {options.repetitions}"
    )
    for column in ("model", "two generate calls", "shared rollout", "naive / ours"):
        table.add_column(column, justify="right" if column != "model" else "left")
    for name, result in results.items():
        table.add_row(
            name, f"{result['naive_s']:.2f} s", f"{result['ours_s']:.2f} s", f"{result['ratio']:.2f}x"
        )
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and record when asked."""
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    set_up(options.threads)
    versions = (options.version,) if options.version else (1, 2)
    results = {f"paligemma{version}": measure(version, options) for version in versions}
    print_table(results, options)
    write(options.json, record_of(results, options, argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
