"""One start of a training on a RISC folder, measured to the end of its first step: a process of ``data.py``.

    python -m benchmarks.data_start {sft,rl,trl,load} FOLDER OUTPUT [--adapter DIR]

Prints one line of JSON: wall-clock and CPU seconds since the process began, and its memory.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

BEGAN = time.time()
BASE = "embedded:scenes-paligemma"
PROMPT = "caption en"
LOADED_IMAGES = 512
MEMORY = {"private_mb": "RssAnon", "mapped_mb": "RssFile", "peak_mb": "VmHWM"}


def usage() -> dict[str, float]:
    """Seconds and megabytes of this process; ``private_mb`` is memory that no other process shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.time() - BEGAN,
        "cpu_seconds": spent.ru_utime + spent.ru_stime,
        **{name: int(status[key].split()[0]) / 1024 for name, key in MEMORY.items()},
    }


def end_at_first_step() -> None:
    """Print and leave when the first optimizer step is over."""
    from transformers.trainer_callback import DefaultFlowCallback

    def on_step_end(*args: Any, **kwargs: Any) -> None:
        print(json.dumps(usage()), flush=True)
        os._exit(0)

    DefaultFlowCallback.on_step_end = on_step_end


def ours(stage: str, folder: str, output: str, adapter: str | None) -> None:
    """The command of a stage with two images a step."""
    end_at_first_step()
    from scst.cli import rl, sft

    command, recipe = (sft, "quickstart/sft") if stage == "sft" else (rl, "quickstart/scst")
    flags = ["--config", recipe, "--dataset", folder, "--output_dir", output, "--overwrite", "true"]
    flags += ["--per_device_train_batch_size", "2", *(["--adapter", adapter] if adapter else [])]
    sys.exit(command.main(flags))


def trl(folder: str, output: str) -> None:
    """TRL's GRPO with two images a step: the CSV as a dataset of paths, nothing checked, a trivial reward."""
    end_at_first_step()
    import datasets
    from trl import GRPOConfig

    from benchmarks.trl_paligemma import CHAT_TEMPLATE, PaliGemmaGRPOTrainer
    from scst.adapters.kinds import LoRA
    from scst.adapters.loaded import LoadedPolicy
    from scst.models.prompts import forbidden_token_ids

    with (Path(folder) / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    columns = {
        "image": [str(Path(folder) / "resized" / row["image"]) for row in rows],
        "references": [[row[f"caption_{k}"] for k in range(1, 6)] for row in rows],
        "prompt": [[{"role": "user", "content": PROMPT}] for _ in rows],
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    policy = LoadedPolicy.load(BASE, LoRA(rank=16), trainable=True, quantization="none")
    processor = policy.encoder.processor
    processor.chat_template = CHAT_TEMPLATE
    vocabulary = policy.model.config.get_text_config().vocab_size
    config = GRPOConfig(
        output_dir=output,
        per_device_train_batch_size=10,
        num_generations=5,
        max_completion_length=40,
        beta=0.0,
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        generation_kwargs={"suppress_tokens": forbidden_token_ids(processor, vocabulary)},
    )

    def length(completions: list[Any], **columns: Any) -> list[float]:
        return [float(len(str(completion))) for completion in completions]

    PaliGemmaGRPOTrainer(
        policy.model, length, args=config, train_dataset=dataset, processing_class=processor
    ).train()


def load(folder: str) -> None:
    """Random images of the training split through the collator of the supervised stage."""
    import random

    from scst.adapters.loaded import LoadedPolicy
    from scst.data.collate import SFTCollator
    from scst.data.load_splits import load_splits
    from scst.data.supervision import CaptionChoice

    policy = LoadedPolicy.load(BASE, None, quantization="none")
    before = usage()
    rows = load_splits(folder, ["train"]).splits["train"]
    loaded = usage()
    collator = SFTCollator(policy.encoder, PROMPT, CaptionChoice("random"), 40)
    numbers = random.Random(0).choices(range(len(rows)), k=LOADED_IMAGES)
    for start in range(0, LOADED_IMAGES, 32):
        collator([rows[i] for i in numbers[start : start + 32]])
    after = usage()
    print(
        json.dumps(
            {
                "load_splits": {name: loaded[name] - before[name] for name in ("seconds", "cpu_seconds")},
                "cpu_ms_per_image": 1000 * (after["cpu_seconds"] - loaded["cpu_seconds"]) / LOADED_IMAGES,
                "private_mb_added": after["private_mb"] - before["private_mb"],
            }
        )
    )


def main(argv: list[str]) -> None:
    """Start once."""
    stage, folder, output, *rest = argv
    if stage == "load":
        load(folder)
    elif stage == "trl":
        trl(folder, output)
    else:
        ours(stage, folder, output, rest[1] if rest else None)


if __name__ == "__main__":
    main(sys.argv[1:])
