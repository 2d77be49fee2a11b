"""Trainable parameters, counted per part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scst.data.terminal import PlainTable


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


def parameter_table(model: torch.nn.Module) -> PlainTable:
    """A table of trainable parameters per part, with their share of the whole model."""
    parts = count_parameters(model)
    whole = sum(part.total for part in parts)
    table = PlainTable(title="Trainable parameters", title_justify="left")
    for column in ("part", "trainable", "of", "share of the whole"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in [*parts, PartParameters("all", sum(p.trainable for p in parts), whole)]:
        table.add_row(part.part, f"{part.trainable:,}", f"{part.total:,}", f"{part.trainable / whole:.2%}")
    return table
