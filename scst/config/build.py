"""Builders: from a recipe to data, model, trainer. The one place that sees both recipes and classes.

Import this after the arguments are parsed: it imports torch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
from rich.progress import Progress
from transformers.integrations import get_available_reporting_integrations

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.adapters.lora import check_adapter_exists, load_adapter
from scst.adapters.prompt_tuning import use_virtual_tokens
from scst.config.build_adapter import new_adapter
from scst.config.devices import check_devices, start_processes, uses_fsdp
from scst.data.collate import SFTCollator
from scst.data.loading import LoadedData, load_splits
from scst.data.preparation.caption_scorers import consensus_scores
from scst.data.preparation.selection import consensus_first
from scst.data.preview import training_preview
from scst.data.supervision import CaptionChoice
from scst.errors import RecipeError
from scst.metrics.suite import MetricSettings
from scst.models.loading import (
    check_model_exists,
    compute_dtype,
    load_model,
    load_processor,
)
from scst.training.checkpoints import sweep
from scst.training.run import run_training as run_training
from scst.training.run_record import claim_output_dir
from scst.training.validation import CaptionValidation


def prepare_libraries() -> None:
    """Leave the screen to this project's own progress and tables; on the CPU take tiny numbers for zero.

    Gradients of improbable tokens are full of denormal numbers (below 1e-38), with which a CPU computes a
    hundred times slower. They are far below the rounding of every sum that they go into.
    """
    torch.set_flush_denormal(True)  # before there are other threads: they inherit it
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
    """Whether this is the process that writes."""
    return PartialState().is_main_process


def check_inputs(recipe: Any) -> str:
    """Everything that can be wrong before data or model are loaded; returns the base model's name.

    Raises:
        RecipeError: on a model, adapter or output folder that cannot be used.
    """
    check_devices(recipe)
    if recipe.adapter:
        check_adapter_exists(recipe.adapter)
    name = recipe.model_name_or_path or _base_of(recipe.adapter)
    check_model_exists(name)
    return name


def _base_of(adapter: str | None) -> str:
    if adapter is None:
        raise RecipeError(
            "model_name_or_path: missing; give a PaliGemma checkpoint, or an adapter that names its own"
        )
    from peft import PeftConfig

    return PeftConfig.from_pretrained(adapter).base_model_name_or_path


def load_data(recipe: Any, splits: list[str], console: Console) -> LoadedData:
    """The splits of a recipe, checked; the main process reads first."""
    limits = {recipe.train_split: getattr(recipe, "max_train_images", None)}
    limits |= {recipe.eval_split: recipe.max_eval_images}
    with PartialState().main_process_first():
        data = load_splits(
            recipe.dataset,
            splits,
            fractions=recipe.split_fractions,
            split_seed=recipe.split_seed,
            on_bad_example=recipe.on_bad_example,
            limit={name: count for name, count in limits.items() if name in splits and count is not None},
            console=console,
        )
    if getattr(recipe, "caption_policy", None) == "consensus":
        rows = data.splits[recipe.train_split]
        first = consensus_first(rows, consensus_scores(rows["references"], recipe.train_split), recipe.seed)
        data = dataclasses.replace(data, splits=data.splits | {recipe.train_split: first})
    return data


def build_policy(recipe: Any, base: str, *, trainable: bool) -> tuple[torch.nn.Module, Any]:
    """Model with its adapter (a new one for SFT without `adapter`), and processor."""
    processor = load_processor(base)
    model = load_model(
        base,
        quantization=recipe.quantization,
        precision=recipe.precision,
        attn_implementation=recipe.attn_implementation,
    )
    if recipe.adapter:
        model = load_adapter(model, recipe.adapter, trainable=trainable)
    elif trainable:
        model = new_adapter(recipe, model, processor)
    use_virtual_tokens(processor, model)
    return model, processor


def build_training_arguments(recipe: Any, cls: type = transformers.TrainingArguments, **stage: Any) -> Any:
    """``cls`` (TrainingArguments or a subclass) from the recipe, with what the project decides.

    Raises:
        RecipeError: on a combination that the library refuses.
    """
    dtype = compute_dtype(recipe.precision)
    on_gpu = torch.cuda.is_available()
    settings = {
        "logging_steps": 1,
        "save_strategy": "steps",
        "report_to": "none",
        "gradient_checkpointing": False,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
    }
    settings |= recipe.training | stage
    batch_size = settings.get("per_device_train_batch_size", cls.per_device_train_batch_size)
    settings.setdefault("per_device_eval_batch_size", batch_size)  # evaluation within training's memory
    settings |= {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu": not on_gpu,
        "accelerator_config": {"use_configured_state": uses_fsdp() and not on_gpu},
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    _check_report_to(settings["report_to"])
    if recipe.early_stopping_patience is not None and settings.get("eval_strategy", "no") == "no":
        raise RecipeError(
            "early_stopping_patience: there is no evaluation to be patient with; give eval_strategy: steps "
            "(and eval_steps), or --early_stopping_patience null"
        )
    try:
        return cls(**settings)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training arguments: {error}") from error


def _check_report_to(report_to: str | list[str]) -> None:
    """Refuse a tracker that is not installed now, not after the model is loaded."""
    available = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in ("none", "all", *available):
            raise RecipeError(
                f"report_to: {name!r} is not installed (available: {', '.join(available) or 'none'}); "
                "install it, e.g. pip install 'scst[tracking]', or use report_to: none"
            )


def build_validation(
    recipe: Any,
    data: LoadedData,
    processor: Any,
    args: Any,
    *,
    metrics: Sequence[str] = ("cider_d",),
    reward: Callable[..., float] | None = None,
) -> CaptionValidation | None:
    """Caption metrics on a fixed random part of the evaluation split, when the recipe evaluates at all."""
    if args.eval_strategy == "no":
        return None
    rows = data.splits[recipe.eval_split]
    count = min(recipe.validation_images, len(rows))
    references = list(rows["references"])
    frequencies = DocumentFrequencies.from_references(references, eos="omitted", split=recipe.eval_split)
    subset = rows.shuffle(seed=recipe.split_seed).select(range(count))
    return CaptionValidation(
        processor,
        subset,
        metrics=metrics,
        settings=MetricSettings(frequencies=frequencies),
        reward=reward,
        prompt=recipe.prompt,
        max_new_tokens=recipe.max_new_tokens,
        min_new_tokens=recipe.min_new_tokens,
        batch_size=recipe.validation_batch_size or args.per_device_train_batch_size,
    )


def training_splits(recipe: Any) -> list[str]:
    """The splits a training stage reads: the evaluation split only when it evaluates."""
    evaluates = recipe.training.get("eval_strategy", "no") != "no"
    return [recipe.train_split, recipe.eval_split] if evaluates else [recipe.train_split]


def stopping_callbacks(recipe: Any) -> list[Any]:
    """Early stopping by ``metric_for_best_model``, when the recipe asks for it."""
    if recipe.early_stopping_patience is None:
        return []
    return [transformers.EarlyStoppingCallback(recipe.early_stopping_patience)]


def preview(recipe: Any, data: LoadedData, processor: Any, console: Console) -> None:
    """Show what the model will be trained on, and refuse data that cannot be meant."""
    train = data.splits[recipe.train_split]
    rows = [train[i] for i in range(0, len(train), max(1, len(train) // 3))][:3]
    choice = CaptionChoice(recipe.caption_policy, recipe.seed)
    training_preview(
        train,
        SFTCollator(processor, recipe.prompt, choice, recipe.max_new_tokens, recipe.prompts)(rows),
        processor.tokenizer,
        max_new_tokens=recipe.max_new_tokens,
        choice=choice,
        data=data,
        image_ids=[row["image_id"] for row in rows],
        console=console,
    )


@contextmanager
def progress_to_stderr(title: str, total: int) -> Iterator[Any]:
    """A progress bar beside the results on standard output; yields a function that takes images just done."""
    with Progress(console=Console(stderr=True, quiet=not is_main_process()), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def open_output_dir(recipe: Any) -> None:
    """Claim the output folder, on the main process only."""
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            claim_output_dir(recipe.output_dir, resume=recipe.resume, overwrite=recipe.overwrite)
            sweep(recipe.output_dir)
