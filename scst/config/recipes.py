"""The recipes: one dataclass per command, with the keys, their defaults and their help.

Those of training and of preparing data stand in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scst.config.data_recipes import DocumentFrequenciesRecipe, PrepareRecipe
from scst.config.keys import (
    COUNT,
    NOT_NEGATIVE,
    SEED,
    STYLE_METRICS,
    TEXT_METRICS,
    DataKeys,
    MetricKeys,
    ModelKeys,
    Recipe,
    RunKeys,
    key,
)
from scst.config.training_recipes import SCSTRecipe, SFTRecipe
from scst.errors import RecipeError
from scst.training.arguments.value_types import Range


@dataclass
class EvaluateRecipe(MetricKeys, ModelKeys, DataKeys, RunKeys, Recipe):
    """Captions a split and scores it."""

    stage = "evaluate"
    command = "evaluate"

    decoding: str = key(
        "greedy",
        "greedy, beam, nucleus, beam-sample, or a published setting with its own length limit: greedy-16, "
        "beam4-sample-16, nucleus-32, beam5",
    )
    metrics: list[str] = key(
        [*TEXT_METRICS, "meteor", *STYLE_METRICS, "truncation_rate"], "metrics; scst score --list names all"
    )
    eval_batch_size: int = key(32, "images per batch", range=COUNT)
    report_samples: int = key(
        8,
        "images in report.html with greedy and sampled captions; 0: none",
        range=Range(at_least=0, at_most=64),
    )
    compare_with: str | None = key(
        None,
        "output folder or predictions of an earlier evaluation, for the changes in report.html",
        is_path=True,
    )
    compare: list[str] = key(
        [], "two prediction files or output folders to compare, without captioning", is_path=True
    )


@dataclass
class ScoreRecipe(MetricKeys, Recipe):
    """Scores caption files; no model unless a metric is one."""

    stage = "score"
    command = "score"

    predictions: str | None = key(
        None, "caption file: JSONL, COCO JSON or plain text; - for standard input", is_path=True
    )
    references: list[str] = key(
        [], "human captions; several plain text files: one per reference", is_path=True
    )
    subset: bool = key(False, "true: accept references of images without a prediction")
    images: str | None = key(None, "folder of pictures named by image id, for CLIPScore", is_path=True)
    per_caption: str | None = key(None, "JSONL file to write the scores of every caption to", is_path=True)
    seed: int = key(42, "seed of the bootstrap", range=SEED)


@dataclass
class CaptionRecipe(ModelKeys, RunKeys, Recipe):
    """Captions pictures."""

    stage = "caption"
    command = "caption"

    prompt: str = key("caption en", "text instruction that follows the image")
    max_new_tokens: int = key(
        32, "maximum length of a caption in tokens", range=Range(at_least=1, at_most=8192)
    )
    min_new_tokens: int = key(1, "minimum length of a caption in tokens", range=NOT_NEGATIVE)
    decoding: str = key(
        "greedy",
        "greedy, beam, nucleus, beam-sample, or a published setting with its own length limit: greedy-16, "
        "beam4-sample-16, nucleus-32, beam5",
    )
    eval_batch_size: int = key(32, "images per batch", range=COUNT)
    output: str | None = key(None, "JSONL file to write; default: standard output", is_path=True)


@dataclass
class MergeRecipe(Recipe):
    """Writes a checkpoint that needs no adapter."""

    stage = "merge"
    command = "merge"

    adapter: str | None = key(None, "adapter folder, as scst sft and scst rl write it", is_path=True)
    model_name_or_path: str | None = key(
        None, "base model; default: the one that the adapter names", is_path=True
    )
    precision: str = key(
        "auto",
        "precision of the merged weights; auto: bf16 on GPUs, fp32 on the CPU",
        ["auto", "bf16", "fp16", "fp32"],
    )
    image_tokens: int = key(
        0,
        "most tokens of an image, where the family has a choice (Qwen-VL, SmolVLM, InternVL, "
        "LLaVA-OneVision); 0: as the checkpoint has it",
        range=NOT_NEGATIVE,
    )
    prompt: str = key("caption en", "instruction to print with the virtual tokens of prompt tuning")
    output_dir: str = key("outputs/merged", "folder of the new checkpoint", is_path=True)
    overwrite: bool = key(False, "true: replace a model in output_dir")


@dataclass
class ExplainRecipe(ModelKeys, RunKeys, Recipe):
    """Shows which parts of one picture a caption rests on."""

    stage = "explain"
    command = "explain"

    prompt: str = key("caption en", "text instruction that follows the image")
    max_new_tokens: int = key(
        32, "maximum length of a caption in tokens", range=Range(at_least=1, at_most=8192)
    )
    min_new_tokens: int = key(1, "minimum length of a caption in tokens", range=NOT_NEGATIVE)
    decoding: str = key("greedy", "greedy, beam, nucleus or beam-sample")
    compare_adapters: list[str] = key(
        [], "further models to explain: adapter folders, or base for the model without adapter", is_path=True
    )
    caption: str | None = key(None, "caption to explain; default: the caption that each model generates")
    word: str | int | None = key(
        None, "word to explain (its text, or its number from 1); default: all words", range=COUNT
    )
    methods: list[str] = key(
        ["shap", "integrated_gradients", "grad_cam", "attention_rollout"],
        "shap, integrated_gradients, grad_cam, attention_rollout; the first determines a word's region",
        ["shap", "integrated_gradients", "grad_cam", "attention_rollout"],
    )
    occlusion: str = key(
        "blur", "what replaces hidden parts of the picture", ["blur", "mean", "gray", "black"]
    )
    num_segments: int = key(
        40, "approximate number of SLIC segments of the picture", range=Range(at_least=2, at_most=100_000)
    )
    shap_permutations: int = key(
        12, "permutations of the Shapley estimate; each takes num_segments forward passes", range=COUNT
    )
    ig_steps: int = key(32, "steps of Integrated Gradients per word", range=COUNT)
    curve_steps: int = key(20, "points of the deletion and insertion curves", range=COUNT)
    explain_batch_size: int = key(8, "pictures per forward pass", range=COUNT)


@dataclass
class MatrixRecipe(Recipe):
    """Models x prompts x decodings: trains what has to be trained, evaluates all, and compares."""

    stage = "matrix"
    command = "matrix"

    models: list[dict[str, Any]] = key(
        [{"name": "base"}],
        "list of {name, adapter or stages: [{stage, config, key: value}], vary: {key: [values]}, key: value}",
    )
    prompts: list[str] = key(
        [], "instructions to evaluate with; []: the prompt that each model was trained with"
    )
    decodings: list[str] = key(
        [], "decoding presets of scst evaluate; []: the `decoding` of `evaluate` or of the model"
    )
    max_new_tokens: list[int] | int = key(
        [],
        "values of max_new_tokens to evaluate with; []: that of the recipes",
        range=Range(at_least=1, at_most=8192),
    )
    seeds: list[int] | int = key(
        [], "seeds to repeat every training and evaluation with; []: the seed of the recipes", range=SEED
    )
    common: dict[str, Any] = key(
        {}, "keys for all stages and evaluations that have them, e.g. {dataset: DATA}"
    )
    evaluate: dict[str, Any] = key({}, "keys of scst evaluate, and config: its recipe")
    main_metric: str = key(
        "cider_d",
        "metric of the ablation and robustness figures; if it was not computed, the first one that was",
    )
    launcher: str = key(
        "python", "command that starts trainings and evaluations, e.g. accelerate launch --config_file FILE"
    )
    output_dir: str = key(
        "outputs/matrix", "output folder of all runs and of matrix.html, .md, .csv and .json", is_path=True
    )


RECIPES: dict[str, type[Recipe]] = {
    recipe.stage: recipe
    for recipe in (
        SFTRecipe,
        SCSTRecipe,
        EvaluateRecipe,
        CaptionRecipe,
        ExplainRecipe,
        MergeRecipe,
        ScoreRecipe,
        PrepareRecipe,
        DocumentFrequenciesRecipe,
        MatrixRecipe,
    )
}
"""Stage -> class of its recipe. Training stages are those with a field ``training``."""

TrainingRecipe = SFTRecipe | SCSTRecipe
DataRecipe = SFTRecipe | SCSTRecipe | EvaluateRecipe | PrepareRecipe | DocumentFrequenciesRecipe


def check_required(recipe: Recipe) -> None:
    """Refuse a recipe without a model or dataset; a default would be used by accident.

    Raises:
        RecipeError: naming the key.
    """
    if isinstance(recipe, EvaluateRecipe) and recipe.compare:
        return
    if isinstance(recipe, DataRecipe):
        required_dataset(recipe.dataset)
    needs_model = SFTRecipe | EvaluateRecipe | CaptionRecipe | ExplainRecipe
    if isinstance(recipe, needs_model) and recipe.model_name_or_path is None and recipe.adapter is None:
        raise RecipeError(
            "model_name_or_path: missing; give a checkpoint, or an adapter (--adapter DIR), which "
            "names its own"
        )


def required_dataset(dataset: str | None) -> str:
    """Return the value of the key ``dataset`` of a recipe that reads data.

    Raises:
        RecipeError: the recipe leaves it out.
    """
    if dataset is None:
        raise RecipeError(
            "dataset: missing; give a RISC folder, parquet, a saved dataset or a hub id; embedded:scenes are "
            "the rendered scenes of the package"
        )
    return dataset
