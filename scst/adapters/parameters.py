"""Trainable parameters, counted per part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scst.data.terminal import PlainTable
from scst.models.families.table import family_of
from scst.models.policy import base_model


@dataclass(frozen=True)
class PartParameters:
    """Parameter counts of one part of the model."""

    part: str
    trainable: int
    total: int


def count_parameters(model: torch.nn.Module) -> list[PartParameters]:
    """Trainable and all parameters per part; a quantised weight counts its elements, not its bytes."""
    names = family_of(base_model(model)).names
    # the projector first: it may lie within the vision tower
    parts = [name.rpartition(".")[2] for name in (*names.projector, names.vision, names.decoder, names.head)]
    counts = {part: [0, 0] for part in (*parts, "other")}
    for name, parameter in model.named_parameters():
        part = next((part for part in parts if f"{part}." in name), "other")
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
