"""What do the shared prefix and the language-model head in chunks save in the scoring pass?

    python benchmarks/scoring.py
    python benchmarks/scoring.py --version 1 --vocabulary 65536 --repetitions 1 --json FILE

Forward and backward of B images with K captions of exactly --tokens tokens, LoRA on the decoder's attention,
image features given (the rollout has made them). Ways, each with one optimisation more:

    usual      the prompt repeated for every caption, logits and log_softmax of all positions
    plain      logits at the positions of the caption only
    packed     the prompt once per image, its captions beside it
    chunked    the head 128 positions at a time: what training does
    left_out   the same, with --left_out of the captions left out, as duplicates and zero advantages are

Logprobs and gradients of the first four must agree. Times are CPU seconds. Memory is what forward and
backward add to the process' resident set at their peak (Linux with glibc; on CUDA to what tensors occupy; not
run there).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.record import circumstances, set_up, write

WAYS = ("usual", "plain", "packed", "chunked", "left_out")
TOLERANCE = 1e-4
"""Relative difference of gradients: float32 sums over hundreds of positions, in different orders."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", type=int, choices=(1, 2), help="PaliGemma 1 or 2; default: both")
    parser.add_argument("--images", type=int, default=8, metavar="B", help="images in a batch [8]")
    parser.add_argument("--samples", type=int, default=5, metavar="K", help="captions per image [5]")
    parser.add_argument("--tokens", type=int, default=16, metavar="T", help="tokens of every caption [16]")
    parser.add_argument("--width", type=int, default=512, help="hidden size [512]")
    parser.add_argument("--vocabulary", type=int, default=8192, metavar="V", help="rows of the head [8192]")
    parser.add_argument("--left_out", type=float, default=0.4, help="share of captions [0.4]")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="leave out what does not fit")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each way, interleaved [3]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def build_policy(version: int, options: argparse.Namespace) -> tuple[Any, Any]:
    """A random policy with an adapter, and its processor."""
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    from benchmarks.models import ModelShape, build_config, build_processor
    from scst.adapters.lora import add_lora
    from scst.models.policy import Policy
    from scst.models.prompts import forbidden_token_mask

    shape = ModelShape(version, width=options.width, vocabulary=options.vocabulary)
    processor = build_processor(shape.num_tokens)
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(build_config(shape, processor)).to(options.device)
    model = add_lora(model, targets="decoder-attention", rank=16, alpha=32.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 1e-2)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = processor.tokenizer
    forbidden = forbidden_token_mask(processor, options.vocabulary)
    return Policy(model.train(), forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id), processor


def build_ways(version: int, options: argparse.Namespace) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """The policy, and name -> a function that returns logprobs (B, K, T) with gradients."""
    import torch

    from scst.models.prompts import PromptEncoder
    from scst.scoring.score_captions import score
    from scst.types import Sampling
    from tests.support.tiny import noise_images

    policy, processor = build_policy(version, options)
    batch = PromptEncoder.of(processor).prompt_batch(
        noise_images(options.images, 224), ["caption en"] * options.images
    )
    batch = batch.to(policy.device)
    with torch.no_grad():
        features = policy.image_features(batch)
    shape = (options.images, options.samples, options.tokens)
    allowed = (~policy.forbidden.cpu()).nonzero().flatten()
    allowed = allowed[allowed != policy.eos_token_id]
    draws = torch.randint(len(allowed), shape, generator=torch.Generator().manual_seed(0))
    ids = allowed[draws].to(policy.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    numbers = torch.arange(options.samples, device=ids.device).expand(shape[:2])
    left_out = numbers.masked_fill(numbers >= round(options.samples * (1 - options.left_out)), -1)

    def ours(layout: str, chunk: int, unique_index: Any = None) -> Callable[[], Any]:
        return lambda: (
            score(
                policy,
                batch,
                ids,
                mask,
                Sampling(options.samples, max_new_tokens=options.tokens),
                image_features=features,
                layout=layout,
                unique_index=unique_index,
                head_chunk=chunk,
            ).logprobs
        )

    return policy, {
        "usual": lambda: usual_logprobs(policy, batch, features, ids),
        "plain": ours("plain", 0),
        "packed": ours("packed", 0),
        "chunked": ours("packed", 128),
        "left_out": ours("packed", 128, left_out),
    }


def usual_logprobs(policy: Any, prompts: Any, features: Any, ids: Any) -> Any:
    """(B, K, T) logprobs by one sequence per caption, log_softmax of the logits of all its positions."""
    import torch

    from scst.models import masks
    from scst.types import select_images

    num_captions, length = ids.shape[1:]
    rows = torch.arange(len(prompts), device=ids.device).repeat_interleave(num_captions)
    prompts, captions = prompts.select(rows), ids.flatten(0, 1)
    steps = torch.arange(1, length + 1, device=ids.device)
    output = policy.model(
        inputs_embeds=torch.cat(
            [
                policy.prompt_embeddings(prompts, select_images(features, rows)),
                policy.caption_embeddings(captions),
            ],
            1,
        ),
        attention_mask=masks.for_attention(
            masks.suffix_mask(prompts, torch.ones_like(captions, dtype=torch.bool)).full,
            policy.text_config._attn_implementation,
            features[0].dtype,
        ),
        position_ids=torch.cat([prompts.position_ids[:, 0], prompts.last_positions + steps], 1),
        use_cache=False,
    )
    impossible = policy.forbidden.expand(length, -1).clone()
    impossible[0, policy.eos_token_id] = True  # no caption is empty
    logits = output.logits.float()
    possible = torch.nn.functional.pad(~impossible, (0, 0, logits.shape[1] - length - 1, 1), value=True)
    logprobs = logits.masked_fill(~possible, -torch.inf).log_softmax(-1)[:, -length - 1 : -1]
    return logprobs.gather(-1, captions.unsqueeze(-1)).squeeze(-1).view_as(ids)


def run(policy: Any, way: Callable[[], Any]) -> dict[str, Any]:
    """Forward and backward once: CPU seconds, wall-clock seconds, growth of memory, logprobs, gradient."""
    import torch

    from scst.training.phase_meter import PhaseMeter

    policy.model.zero_grad()
    before = memory_in_use(policy.device)  # of the last way nothing may be left over to be used again
    with PhaseMeter(policy.device).measure("scoring") as usage:
        started = time.process_time()
        logprobs = way()
        weights = torch.linspace(-1, 1, logprobs.numel(), device=logprobs.device).view_as(logprobs)
        (weights * logprobs).sum().backward()
        cpu = time.process_time() - started
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    return {
        "cpu_s": cpu,
        "wall_s": usage.seconds,
        "memory_gb": usage.peak_gb - before,
        "logprobs": logprobs.detach(),
        "gradient": gradient,
    }


def memory_in_use(device: Any) -> float:
    """Gigabytes of tensors on the card, or of the process."""
    import torch

    from scst.training.phase_meter import GB

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GB
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / GB


def check_equal(name: str, found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Relative difference of the gradients.

    Raises:
        RuntimeError: when the ways do not compute the same thing.
    """
    difference = ((found["gradient"] - expected["gradient"]).norm() / expected["gradient"].norm()).item()
    logprobs = (found["logprobs"] - expected["logprobs"]).abs().max().item()
    if difference > TOLERANCE or logprobs > TOLERANCE:
        raise RuntimeError(f"{name}: gradients differ by {difference:.1e}, logprobs by {logprobs:.1e}")
    return difference


def measure(version: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of every way and the ratios of the first to each."""
    policy, ways = build_ways(version, options)
    ways = {name: way for name, way in ways.items() if name in options.ways}
    times: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    differences = {}
    for repetition in range(options.repetitions + 1):  # the first is the warm-up and the check
        results: dict[str, Any] = {}
        for name, way in ways.items():
            results[name] = run(policy, way)
            if repetition:
                times[name].append({k: results[name][k] for k in ("cpu_s", "wall_s", "memory_gb")})
            elif name != "left_out":
                differences[name] = check_equal(name, results[name], results[next(iter(ways))])
        cpu = ", ".join(f"{name} {result['cpu_s']:.2f} s" for name, result in results.items())
        print(f"PaliGemma {version}, repetition {repetition}: {cpu}", file=sys.stderr, flush=True)
    medians = {
        name: {key: round(statistics.median(t[key] for t in runs), 3) for key in runs[0]}
        for name, runs in times.items()
    }
    first = medians[next(iter(ways))]
    return {
        "ratio": {name: round(first["cpu_s"] / m["cpu_s"], 3) for name, m in medians.items()},
        "medians": medians,
        "all": times,
        "largest_gradient_difference": max(differences.values()),
    }


def print_table(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Medians and ratios as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"scoring, forward and backward: B={options.images}, K={options.samples}, T={options.tokens}, "
        f"256 image tokens, V={options.vocabulary}, median of {options.repetitions}"
    )
    for column in ("model", "way", "CPU seconds", "times as fast", "memory"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for model, result in results.items():
        for name, median in result["medians"].items():
            table.add_row(
                model,
                name,
                f"{median['cpu_s']:.2f}",
                f"{result['ratio'][name]:.2f}x",
                f"{median['memory_gb']:.2f} GB",
            )
    Console().print(table)


def record_of(results: dict[str, Any], options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """The measurements with what is needed to repeat them; ``ratio`` is of chunked, in the worst version."""
    names = ("images", "samples", "tokens", "width", "vocabulary", "left_out", "checkpointing", "threads")
    ratios = [result["ratio"]["chunked"] for result in results.values() if "chunked" in result["ratio"]]
    return {
        "benchmark": "scoring",
        "command": " ".join(["python", "benchmarks/scoring.py", *argv]),
        "ratio": min(ratios, default=None),
        **results,
        "sizes": {name: getattr(options, name) for name in names} | {"image_tokens": 256},
        "device": options.device,
        **circumstances(),
    }


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
