"""Builds what all commands need from a recipe: libraries and console, data, model.

Import this after the arguments are parsed: it imports torch.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

# read at import time by the libraries below
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import datasets
import transformers
from accelerate import PartialState
from rich.console import Console

from scst.adapters.kinds import Adapter
from scst.adapters.loaded import LoadedPolicy
from scst.config.build_adapter import adapter_of
from scst.config.keys import DataKeys
from scst.config.recipes import (
    CaptionRecipe,
    EvaluateRecipe,
    ExplainRecipe,
    SCSTRecipe,
    SFTRecipe,
    required_dataset,
)
from scst.data.collate import SFTCollator
from scst.data.consensus import data_for
from scst.data.load_splits import LoadedData, load_again, load_splits
from scst.data.open_stream import is_streamed, load_stream
from scst.data.preview import training_preview
from scst.data.streamed_rows import StreamedRows
from scst.data.supervision import CaptionChoice
from scst.data.terminal import progress_bar
from scst.distributed.launching import start_processes
from scst.distributed.main_process import on_main_process
from scst.distributed.processes import from_main_process
from scst.training.arguments.argument_checks import evaluates

TrainingRecipe = SFTRecipe | SCSTRecipe
Recipe = TypeVar("Recipe", SFTRecipe, SCSTRecipe)
STREAM_PREVIEW = 64
"""Rows of a stream that the preview looks at."""


def prepare_libraries() -> None:
    """Start the processes of a launcher, silence the libraries, and flush denormal numbers to zero.

    Gradients of improbable tokens are full of denormal numbers (below 1e-38), which slow a CPU down a hundred
    times. They are far below the rounding error of every sum that they are part of.
    """
    torch.set_flush_denormal(True)  # first: threads inherit the setting from the one that creates them
    start_processes()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name in ("accelerate", "torch.distributed", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="bitsandbytes|torch|peft")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="__array__ implementation")


def make_console(*, quiet: bool = False) -> Console:
    """The console of the main process; other processes stay silent."""
    return Console(quiet=quiet or not PartialState().is_main_process, width=None if os.isatty(1) else 140)


def is_main_process() -> bool:
    """Whether this is the main process, the one that writes files."""
    return PartialState().is_main_process


def load_data(recipe: DataKeys, splits: list[str], console: Console) -> LoadedData:
    """Load and check the splits of a recipe.

    The main process does it; the others open what it has left in the dataset's cache folder, and check only
    where they do not find that (another machine without a shared file system).
    """
    dataset = required_dataset(recipe.dataset)
    if isinstance(recipe, TrainingRecipe) and is_streamed(dataset, recipe.streaming):
        return load_stream(
            dataset,
            recipe.train_split,
            held_out=[split for split in splits if split != recipe.train_split],
            held_out_images=recipe.max_eval_images or recipe.validation_images,
            block=recipe.stream_block,
            seed=recipe.seed,
            on_bad_example=recipe.on_bad_example,
        )
    limits = {recipe.train_split: recipe.max_train_images, recipe.eval_split: recipe.max_eval_images}

    def load() -> LoadedData:
        return load_splits(
            dataset,
            splits,
            fractions=recipe.split_fractions,
            split_seed=recipe.split_seed,
            resplit=recipe.resplit,
            on_bad_example=recipe.on_bad_example,
            limit={name: count for name, count in limits.items() if name in splits and count is not None},
            check=recipe.check,
            console=console,
        )

    data = on_main_process(load)
    key = from_main_process(data.key if data else "")
    data = data or load_again(dataset, key) or load()
    if isinstance(recipe, TrainingRecipe):
        return data_for(recipe.caption_policy, data, recipe.train_split, recipe.seed)
    return data


def build_policy(
    recipe: TrainingRecipe | EvaluateRecipe | CaptionRecipe | ExplainRecipe, base: str, *, trainable: bool
) -> LoadedPolicy:
    """Load the model with the recipe's adapter; the supervised stage without one gets a new adapter."""
    adapter: str | Adapter | None = recipe.adapter
    if trainable and not adapter and isinstance(recipe, SFTRecipe):
        adapter = adapter_of(recipe)
    return LoadedPolicy.load(
        base,
        adapter,
        quantization=recipe.quantization,
        precision=recipe.precision,
        attn_implementation=recipe.attn_implementation,
        image_tokens=recipe.image_tokens,
        prompt=recipe.prompt,
        max_new_tokens=recipe.max_new_tokens,
        min_new_tokens=recipe.min_new_tokens,
        trainable=trainable,
        seed=recipe.seed,
    )


def training_splits(recipe: TrainingRecipe) -> list[str]:
    """The splits that a training stage reads: the evaluation split only when it evaluates."""
    return [recipe.train_split, *([recipe.eval_split] if evaluates(recipe.training) else [])]


def preview(recipe: TrainingRecipe, data: LoadedData, policy: LoadedPolicy, console: Console) -> None:
    """Print a preview of the training data, and refuse data that is obviously wrong."""
    rows = data.training_rows(recipe.train_split)
    train = rows.first(STREAM_PREVIEW) if isinstance(rows, StreamedRows) else rows
    shown = [train[i] for i in range(0, len(train), max(1, len(train) // 3))][:3]
    choice = CaptionChoice(recipe.caption_policy, recipe.seed)
    collator = SFTCollator(policy.encoder, recipe.prompt, choice, recipe.max_new_tokens, recipe.prompts)
    training_preview(
        train,
        collator(shown),
        policy.encoder.tokenizer,
        max_new_tokens=recipe.max_new_tokens,
        choice=choice,
        data=data,
        image_ids=[row["image_id"] for row in shown],
        eos_token_id=policy.encoder.eos_token_id,
        console=console,
    )


@contextmanager
def progress_to_stderr(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields a function to call with the number of images just done."""
    with progress_bar(Console(stderr=True, quiet=not is_main_process()), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)
