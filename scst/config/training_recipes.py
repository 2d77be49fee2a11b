"""The recipes of the two training stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scst.config.keys import (
    COUNT,
    NOT_NEGATIVE,
    DataKeys,
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
