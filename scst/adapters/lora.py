"""Adapters: which layers get one, what stays frozen, and a table of what is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.table import Table

from scst.adapters import bottleneck, prefix_tuning, prompt_tuning
from scst.distributed.sharded_weights import is_sharded, part_of, writable
from scst.errors import RecipeError

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_MLP = r"mlp\.(gate|up|down)_proj"
_VISION = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"
_PROJECTOR = r".*multi_modal_projector\.linear"

LORA_TARGETS: dict[str, str] = {
    "decoder-attention": rf".*language_model.*\.({_ATTENTION})",
    "decoder-attention-mlp": rf".*language_model.*\.({_ATTENTION}|{_MLP})",
    "decoder-attention-mlp+projector": rf".*language_model.*\.({_ATTENTION}|{_MLP})|{_PROJECTOR}",
    "vision+decoder-qv": r".*(language_model|vision_tower).*\.self_attn\.(q|v)_proj",
    "full": rf".*language_model.*\.({_ATTENTION}|{_MLP})|.*vision_tower.*\.({_VISION})|{_PROJECTOR}",
}
"""Preset -> expression over full module names. Bare names such as ``q_proj`` would also match SigLIP."""


LORA_VARIANTS: dict[str, dict[str, bool]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
"""Name -> PEFT's settings. rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) scales with alpha / sqrt(rank); DoRA
(Liu et al. 2024, arXiv:2402.09353) trains the magnitude of each weight column beside its direction."""


ADAPTER_TYPES: dict[str, str] = {
    "LORA": "lora",
    prompt_tuning.PEFT_TYPE: "prompt_tuning",
    prefix_tuning.PEFT_TYPE: "prefix_tuning",
    bottleneck.PEFT_TYPE: "bottleneck",
}
"""PEFT's name for a type of adapter -> the recipe's."""


def target_pattern(lora_targets: str) -> str:
    """The expression of a preset, or the text itself as a regular expression over full module names."""
    return LORA_TARGETS.get(lora_targets, lora_targets)


def add_lora(
    model: torch.nn.Module,
    *,
    targets: str,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    variant: str = "lora",
    rank_pattern: Mapping[str, int] | None = None,
) -> PeftModel:
    """Wrap a frozen model with a new LoRA adapter (Hu et al. 2021, arXiv:2106.09685) in fp32.

    Args:
        model: what is adapted.
        targets: a name in :data:`LORA_TARGETS`, or a regular expression over full module names.
        rank: of the adapter.
        alpha: the adapter is scaled with alpha / rank.
        dropout: on its input.
        variant: a name in :data:`LORA_VARIANTS`.
        rank_pattern: ends of module names (regular expressions) -> another rank there, the scale kept.

    Raises:
        RecipeError: when targets or a pattern match no layer, or reach embeddings or the language-model head.
    """
    ranks = dict(rank_pattern or {})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        rank_pattern=ranks,
        alpha_pattern={pattern: alpha * other / rank for pattern, other in ranks.items()},
        **LORA_VARIANTS[variant],
        target_modules=target_pattern(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(
            f"lora_targets: {targets!r} fits no layer of this model. Presets: "
            f"{', '.join(LORA_TARGETS)}; or a regular expression over full module names. ({error})"
        ) from error
    _refuse_head(adapted)
    _refuse_idle_patterns(adapted, ranks)
    return adapted


def load_adapter(model: torch.nn.Module, adapter: str | Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on a model. For training its dropout is set to 0: see :func:`disable_dropout`.

    Raises:
        RecipeError: when the folder holds no adapter.
    """
    check_adapter_exists(adapter)
    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    disable_dropout(adapted)
    return adapted


def check_adapter_exists(adapter: str | Path) -> str:
    """Refuse a local folder without an adapter before any model is loaded; returns the adapter's type.

    Raises:
        RecipeError: naming the folder and what it holds, a setting that would run code, or a type whose
            weights the forward passes of this project would pass by.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        found = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        )
        raise RecipeError(
            f"adapter: {str(adapter)!r} holds no adapter_config.json (found: {found or 'nothing'}). Give the "
            "output folder of launch/sft.py or launch/scst.py, or one of its checkpoints"
        )
    peft_type = _adapter_settings(folder / "adapter_config.json").get("peft_type")
    if peft_type not in ADAPTER_TYPES:
        raise RecipeError(
            f"adapter: {str(adapter)!r} is of PEFT's type {peft_type!r}; expected one of "
            f"{', '.join(ADAPTER_TYPES)}, which launch/sft.py makes (docs/adapters.md)"
        )
    return ADAPTER_TYPES[peft_type]


def _adapter_settings(config: Path) -> dict[str, Any]:
    """PEFT imports the module that ``megatron_core`` names if ``megatron_config`` is set: of no use here."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"adapter: {str(config)!r} is no readable JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("megatron_config"):
        raise RecipeError(
            f"adapter: {str(config)!r} sets megatron_config, which makes the loader import a module that the "
            "file names. Adapters of this project never have it; set it to null if you trust the adapter"
        )
    return settings


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to 0: captions are sampled (eval) and scored (train) by the same policy."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _refuse_head(model: torch.nn.Module) -> None:
    reached = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and ("lm_head" in name or "embed_tokens" in name)
    ]
    if reached:
        raise RecipeError(
            f"lora_targets reach the language-model head or the embeddings ({reached[0]}, ...): adapt "
            "decoder, projector or vision layers only"
        )


def _refuse_idle_patterns(model: PeftModel, ranks: Mapping[str, int]) -> None:
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for pattern in ranks:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):  # as PEFT reads it
            raise RecipeError(
                f"lora_rank_pattern: {pattern!r} is the end of no adapted layer's name, such as {names[0]!r}"
            )


@dataclass(frozen=True)
class PartParameters:
    """Parameter counts of one part of the model."""

    part: str
    trainable: int
    total: int


PARTS = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")


def count_parameters(model: torch.nn.Module) -> list[PartParameters]:
    """Trainable and all parameters per part; a quantised weight counts its elements, not its bytes."""
    counts = {part: [0, 0] for part in (*PARTS, "other")}
    for name, parameter in model.named_parameters():
        part = next((part for part in PARTS if part in name), "other")
        size = _num_elements(parameter)
        counts[part][1] += size
        counts[part][0] += size if parameter.requires_grad else 0
    return [PartParameters(part, *numbers) for part, numbers in counts.items() if numbers[1]]


def _num_elements(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def parameter_table(model: torch.nn.Module) -> Table:
    """A table of trainable parameters per part, with their share of the whole model."""
    parts = count_parameters(model)
    whole = sum(part.total for part in parts)
    table = Table(title="Trainable parameters", title_justify="left")
    for column in ("part", "trainable", "of", "share of the whole"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in [*parts, PartParameters("all", sum(p.trainable for p in parts), whole)]:
        table.add_row(part.part, f"{part.trainable:,}", f"{part.total:,}", f"{part.trainable / whole:.2%}")
    return table


class AdapterSnapshot:
    """A copy of the trainable weights: the SFT policy that SCST is compared with (``ref_policy``).

    Args:
        model: its trainable weights are copied now.
    """

    def __init__(self, model: torch.nn.Module):
        self._saved = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, ``model`` has the saved weights. Use under ``torch.no_grad()``."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: torch.nn.Module) -> None:
        parameters = {name: p for name, p in model.named_parameters() if name in self._saved}
        if not is_sharded(model):
            for name, parameter in parameters.items():
                parameter.data, self._saved[name] = self._saved[name], parameter.data
            return
        with torch.no_grad(), writable(list(parameters.values())):
            for name, parameter in parameters.items():
                now = parameter.detach().clone()
                parameter.data.copy_(part_of(self._saved[name], parameter))  # unseen by a graph that waits
                self._saved[name] = now
