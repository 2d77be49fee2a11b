"""The models of a matrix: base checkpoint, existing adapter, or a chain of stages; grids over any key."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from scst.errors import RecipeError
from scst.experiments.stage_keys import EVALUATE, STAGES, StageKeys

DECIDED = {
    "output_dir": "every run has its own folder below the matrix's output_dir",
    "resume": "every run goes on where it stopped",
    "overwrite": "every run goes on where it stopped",
    "seed": "use seeds",
}
SHARED_DECIDED = DECIDED | {"adapter": "give it to the model that it belongs to"}
"""Keys that a model may not set, and why."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of a chain.

    Attributes:
        stage: "sft" or "scst".
        config: its recipe file.
        keys: over those of the file.
    """

    stage: str
    config: str | None
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """One model: a base checkpoint, an existing adapter, or what a chain of stages trains.

    Attributes:
        name: of the table.
        family: of the entry whose grid it belongs to.
        varied: label of every key of the grid.
        values: value of every key of the grid; ``sft.learning_rate`` sets the key of that stage only.
        keys: further keys, for all stages and the evaluation that know them; see :func:`keys_for`.
        stages: trained one after the other.
        adapter: a folder; with stages, the one that the first stage starts from.
    """

    name: str
    family: str
    varied: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageSpec, ...] = ()
    adapter: str | None = None


def keys_for(model: ModelSpec, stage: str, stage_keys: StageKeys) -> dict[str, Any]:
    """Keys of a model that a stage (or ``evaluate``) knows; those of its grid in :func:`grid_keys_for`."""
    return {name: value for name, value in model.keys.items() if stage_keys.knows(stage, name)}


def grid_keys_for(model: ModelSpec, stage: str, stage_keys: StageKeys) -> dict[str, Any]:
    """Keys of a model's grid that a stage (or ``evaluate``) knows."""
    reached = {name for name in model.values if _reaches(name, stage, stage_keys)}
    return {_bare(name): value for name, value in model.values.items() if name in reached}


def label_up_to(model: ModelSpec, position: int, stage_keys: StageKeys) -> str:
    """Name of the adapter after the stages up to ``position``: family, and varied keys that they know."""
    stages = [stage.stage for stage in model.stages[: position + 1]]
    parts = [f"{k}={v}" for k, v in model.varied.items() if any(_reaches(k, s, stage_keys) for s in stages)]
    return " ".join([model.family, *parts])


def _reaches(name: str, stage: str, stage_keys: StageKeys) -> bool:
    owner, dot, bare = name.rpartition(".")
    return stage_keys.knows(stage, bare) and (not dot or owner == stage)


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def read_models(entries: Sequence[Any], stage_keys: StageKeys) -> list[ModelSpec]:
    """Read the models of a matrix and expand their grids.

    Args:
        entries: mappings of ``name`` and, by choice, ``stages``, ``adapter``, ``vary`` and recipe keys.
        stage_keys: which keys each stage has.

    Raises:
        RecipeError: naming the model and the key.
    """
    if not entries:
        raise RecipeError("models: missing; give at least one, e.g. models: [{name: base}]")
    models = [
        model
        for position, entry in enumerate(entries)
        for model in _span(_read(entry, position, stage_keys), entry, stage_keys)
    ]
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise RecipeError(f"models: {', '.join(map(repr, twice))} stand there more than once; names differ")
    return models


def _read(entry: Any, position: int, stage_keys: StageKeys) -> ModelSpec:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise RecipeError(f"models: entry {position + 1} should be a mapping with a name, got {entry!r}")
    where = f"models: {entry['name']}"
    rest = {k: v for k, v in entry.items() if k not in ("name", "adapter", "stages", "vary")}
    adapter = entry.get("adapter")
    if adapter is not None and not isinstance(adapter, str):
        raise RecipeError(f"{where}: adapter: expected a folder, got {adapter!r}")
    listed = entry.get("stages", [])
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise RecipeError(f"{where}: stages: expected a list of {{stage: sft, config: FILE}}, got {listed!r}")
    stages = tuple(_read_stage(stage, f"{where}: stages") for stage in listed)
    if stages and stages[0].stage == "scst" and adapter is None:
        raise RecipeError(f"{where}: stages: scst refines an adapter; begin with sft, or give adapter: DIR")
    refuse_decided(rest, where)
    refuse_unknown(rest, [*(stage.stage for stage in stages), EVALUATE], where, stage_keys)
    return ModelSpec(entry["name"], entry["name"], keys=rest, stages=stages, adapter=adapter)


def _read_stage(entry: Any, where: str) -> StageSpec:
    if not isinstance(entry, Mapping) or entry.get("stage") not in STAGES:
        raise RecipeError(
            f"{where}: expected {{stage: sft or scst, config: FILE, any key of it}}, got {entry!r}"
        )
    keys = {k: v for k, v in entry.items() if k not in ("stage", "config")}
    refuse_decided(keys, where)
    if "adapter" in keys:
        raise RecipeError(
            f"{where}: adapter: that of the stage before; give the model's first as its own key"
        )
    return StageSpec(entry["stage"], entry.get("config"), keys)


def _span(model: ModelSpec, entry: Mapping[str, Any], stage_keys: StageKeys) -> list[ModelSpec]:
    """One model per point of the grid."""
    grid, where = entry.get("vary") or {}, f"models: {model.name}: vary"
    if not isinstance(grid, Mapping):
        raise RecipeError(f"{where}: expected {{key: [values]}}, got {grid!r}")
    axes = {name: _labelled(values, f"{where}: {name}") for name, values in grid.items()}
    refuse_decided({_bare(name): None for name in axes}, where)
    reached = [*(stage.stage for stage in model.stages), EVALUATE]
    for name in axes:
        if not any(_reaches(name, stage, stage_keys) for stage in reached):
            owner = name.rpartition(".")[0]
            if owner and owner not in reached:
                raise RecipeError(f"{where}: {name}: the model has no stage {owner!r}")
            refuse_unknown({_bare(name): None}, [owner] if owner else reached, where, stage_keys)
    return [_point(model, dict(zip(axes, point, strict=True))) for point in product(*axes.values())]


def _labelled(values: Any, where: str) -> list[tuple[str, Any]]:
    """(label, value) of a list, or of a mapping from label to value."""
    if isinstance(values, Mapping) and values:
        return [(str(label), value) for label, value in values.items()]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise RecipeError(f"{where}: expected a list of values (or label: value), got {values!r}")
    return [(str(value), value) for value in values]


def _point(model: ModelSpec, point: Mapping[str, tuple[str, Any]]) -> ModelSpec:
    varied = {name: label for name, (label, _) in point.items()}
    values = {name: value for name, (_, value) in point.items()}
    name = " ".join([model.name, *(f"{key}={label}" for key, label in varied.items())])
    return dataclasses.replace(model, name=name, varied=varied, values=values)


def refuse_decided(keys: Mapping[str, Any], where: str, decided: Mapping[str, str] = DECIDED) -> None:
    """Refuse keys that the matrix sets itself.

    Raises:
        RecipeError: naming the key.
    """
    for name in keys:
        if name in decided:
            raise RecipeError(f"{where}: {name}: the matrix sets it; {decided[name]}")


def refuse_unknown(keys: Mapping[str, Any], stages: Sequence[str], where: str, stage_keys: StageKeys) -> None:
    """Refuse keys that none of the stages knows, and suggest similar ones.

    Raises:
        RecipeError: naming the key.
    """
    for name in keys:
        if not any(stage_keys.knows(stage, name) for stage in stages):
            try:
                stage_keys.complete(stages[0], {name: None})
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from error
            raise RecipeError(f"{where}: {name}: not a key of {' or '.join(stages)}")
