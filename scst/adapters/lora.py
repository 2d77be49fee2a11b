"""LoRA: which layers get an adapter, and a new adapter on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from scst.adapters.patterns import check_patterns
from scst.errors import RecipeError
from scst.models.families.family import ModuleNames
from scst.models.families.table import family_of
from scst.models.policy import base_model

LORA_TARGETS = (
    "decoder-attention",
    "decoder-attention-mlp",
    "decoder-attention-mlp+projector",
    "vision+decoder-qv",
    "full",
)
"""Presets of layers; which modules they are is the family's to say (:func:`target_pattern`)."""

LORA_VARIANTS: dict[str, dict[str, bool]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
"""Name -> PEFT's settings. rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) scales with alpha / sqrt(rank); DoRA
(Liu et al. 2024, arXiv:2402.09353) trains the magnitude of each weight column beside its direction."""


def target_pattern(lora_targets: str, names: ModuleNames) -> str:
    """The expression of a preset over full module names, or the text itself as one.

    Bare names such as ``q_proj`` would also match the vision tower.
    """
    attention = names.within(names.decoder, names.attention)
    decoder = names.within(names.decoder, f"{names.attention}|{names.mlp}")
    vision = names.within(names.vision, names.vision_linear)
    projector = _either(
        rf".*{name.rpartition('.')[2]}\.{names.projector_linear}"
        for name in (names.projector if names.projector_linear else ())
    )
    queries = names.within(names.decoder, r"self_attn\.(q|v)_proj")
    presets = {
        "decoder-attention": attention,
        "decoder-attention-mlp": decoder,
        "decoder-attention-mlp+projector": _either([decoder, projector]),
        "vision+decoder-qv": _either([queries, names.within(names.vision, names.vision_qv)]),
        "full": _either([decoder, vision, projector]),
    }
    return presets.get(lora_targets, lora_targets)


def _either(expressions: Iterable[str]) -> str:
    return "|".join(expression for expression in expressions if expression)


def target_parameters(lora_targets: str, names: ModuleNames) -> list[str] | None:
    """Matrices that a preset adapts and that are no layers."""
    reaches_projector = lora_targets in ("decoder-attention-mlp+projector", "full")
    return list(names.projector_parameters) or None if reaches_projector else None


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
    ranks, part_names = dict(rank_pattern or {}), family_of(base_model(model)).names
    names = [name for name, _ in model.named_modules()]
    if targets not in LORA_TARGETS:
        check_patterns("lora_targets", [targets], names)
    check_patterns("lora_rank_pattern", ranks, names)
    settings: dict[str, Any] = LORA_VARIANTS[variant] | {"lora_alpha": alpha}  # PEFT types alpha as int
    config = LoraConfig(
        r=rank,
        lora_dropout=dropout,
        rank_pattern=ranks,
        # PEFT scales every layer with its own alpha / rank: another rank with the same alpha would learn at
        # another speed
        alpha_pattern={pattern: alpha * other / rank for pattern, other in ranks.items()},
        target_modules=target_pattern(targets, part_names),
        target_parameters=target_parameters(targets, part_names),
        bias="none",
        task_type="CAUSAL_LM",
        **settings,
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


def _refuse_head(model: torch.nn.Module) -> None:
    # they are tied to each other: an adapter on one would change or untie the other, and be as large as both
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
