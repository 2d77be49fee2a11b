"""From a matrix to its runs: every training and every evaluation with all its keys, and a folder.

A folder's name ends with a fingerprint of the keys of the run and of everything it builds upon. A changed key
is another folder, so that only what it touches runs again; equal runs share one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scst.config.reader import build_recipe, from_run_record, read_recipe_file, resolved
from scst.errors import RecipeError
from scst.evaluation.decoding import get_decoding
from scst.experiments.matrix_models import (
    EVALUATE,
    SHARED_DECIDED,
    ModelSpec,
    StageSpec,
    knows,
    read_models,
    refuse_decided,
    refuse_unknown,
)
from scst.training.run_record import RECORD_NAME

METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
_NOT_IN_FINGERPRINT = ("output_dir", "adapter", "resume", "overwrite", "report_to", "run_name", "table_steps")
"""Keys that change no weight and no caption, and the adapter's place: its content counts."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Run:
    """One training or evaluation.

    Attributes:
        stage: "sft", "scst" or "evaluate".
        keys: all of them, as the stage's launch script takes them.
        fingerprint: of the keys and of what the run builds upon.
        folder: its output folder.
        after: the training that makes its adapter.
    """

    stage: str
    keys: Mapping[str, Any] = field(hash=False)
    fingerprint: str
    folder: Path
    after: Run | None = None

    @property
    def is_complete(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / (METRICS_FILE if self.stage == EVALUATE else RECORD_NAME)).is_file()

    @property
    def state(self) -> str:
        """complete, begun or to do."""
        if self.is_complete:
            return "complete"
        return "begun" if any(self.folder.glob("checkpoint-*")) else "to do"

    @property
    def place(self) -> str:
        """Its folder, as seen from the matrix's."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def chain(self) -> list[Run]:
        """The trainings it builds upon, first one first."""
        return [*self.after.chain(), self.after] if self.after else []


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix.

    Attributes:
        model: its model.
        prompt, decoding, max_new_tokens: of the evaluation; the limit is the decoding's own where it has one.
        seed: None: those of the recipes.
        trained_on: the prompts that the model was trained on; none for a base checkpoint.
        run: the evaluation.
    """

    model: ModelSpec
    prompt: str
    decoding: str
    max_new_tokens: int
    seed: int | None
    trained_on: tuple[str, ...]
    run: Run


@dataclass(frozen=True)
class Plan:
    """All cells of a matrix in the order of its table."""

    cells: tuple[Cell, ...]

    @property
    def trainings(self) -> list[Run]:
        """Every training once, each after the one it builds upon."""
        return list({run.folder: run for cell in self.cells for run in cell.run.chain()}.values())

    @property
    def evaluations(self) -> list[Run]:
        """Every evaluation once."""
        return list({cell.run.folder: cell.run for cell in self.cells}.values())


def make_plan(recipe: Any) -> Plan:
    """Resolve a matrix recipe; reads recipe files, loads no model.

    Args:
        recipe: ``scst.config.recipes.MatrixRecipe``.

    Raises:
        RecipeError: naming the model and the key.
    """
    models, planner = read_models(recipe.models), _Planner(recipe)
    return Plan(tuple(cell for model in models for cell in planner.cells(model)))


class _Planner:
    """Resolves models with the axes and keys that all of them share."""

    def __init__(self, recipe: Any):
        self.prompts = recipe.prompts
        self.decodings = _axis("decodings", recipe.decodings, str)
        self.limits = _axis("max_new_tokens", recipe.max_new_tokens, int)
        self.seeds = _axis("seeds", recipe.seeds, int)
        self.root = Path(recipe.output_dir)
        self.common = recipe.common
        refuse_decided(self.common, "common", SHARED_DECIDED)
        refuse_unknown(self.common, ["sft", "scst", EVALUATE], "common")
        self.evaluate = _file_and_keys(recipe.evaluate, "evaluate")
        self._folders: dict[str, Path] = {}

    def cells(self, model: ModelSpec) -> Iterator[Cell]:
        """Those of one model, seed by seed."""
        with _naming(f"models: {model.name}"):
            for position, seed in enumerate(self.seeds or [None]):
                training = self._train(model, seed)
                given = self._given(model, training)
                for changes in self._settings():
                    cell = self._cell(model, training, given, changes, seed)
                    depends_on_seed = model.stages or get_decoding(cell.decoding).do_sample
                    if depends_on_seed or position == 0:
                        yield cell

    def _settings(self) -> Iterator[dict[str, Any]]:
        """Prompt, decoding and limit of each cell, as far as the matrix has its own."""
        for prompt in self.prompts or [None]:
            for decoding in self.decodings or [None]:
                for limit in self.limits or [None]:
                    settings = {"prompt": prompt, "decoding": decoding, "max_new_tokens": limit}
                    yield {name: value for name, value in settings.items() if value is not None}

    def _train(self, model: ModelSpec, seed: int | None) -> Run | None:
        before = None
        for position, stage in enumerate(model.stages):
            with _naming(f"stage {position + 1} ({stage.stage})"):
                before = self._stage(model, stage, position, seed, before)
        return before

    def _stage(
        self, model: ModelSpec, stage: StageSpec, position: int, seed: int | None, before: Run | None
    ) -> Run:
        settings = read_recipe_file(stage.config) if stage.config else {}
        settings |= {name: value for name, value in self.common.items() if knows(stage.stage, name)}
        settings |= {**model.keys_for(stage.stage), **stage.keys, **model.grid_keys_for(stage.stage)}
        settings |= {} if seed is None else {"seed": seed}
        adapter = str(before.folder) if before else model.adapter
        settings |= {"adapter": adapter, "resume": True, "overwrite": False}
        name = "-".join([model.label_up_to(position), *_seed_name(seed), stage.stage])
        return self._run(stage.stage, settings, "trained", name, before)

    def _given(self, model: ModelSpec, training: Run | None) -> dict[str, Any]:
        """Keys of every evaluation of a model: first what it was trained with, then what is asked for."""
        trained = training.keys if training else from_run_record(model.adapter) if model.adapter else {}
        given = {name: value for name, value in trained.items() if knows(EVALUATE, name)}
        asked = {name: value for name, value in self.common.items() if knows(EVALUATE, name)}
        asked = self.evaluate | asked | model.keys_for(EVALUATE) | model.grid_keys_for(EVALUATE)
        if trained.get("model_name_or_path"):
            asked.pop("model_name_or_path", None)  # an adapter belongs to its own checkpoint
        given |= asked
        if not given.get("model_name_or_path") and not model.adapter:
            raise RecipeError("model_name_or_path: missing; give it to the model, or all of them as common")
        return given | {"adapter": str(training.folder) if training else model.adapter}

    def _cell(
        self,
        model: ModelSpec,
        training: Run | None,
        given: Mapping[str, Any],
        changes: Mapping[str, Any],
        seed: int | None,
    ) -> Cell:
        settings = {**given, **changes} | ({} if seed is None else {"seed": seed})
        keys = resolved(build_recipe(EVALUATE, settings))
        limit = get_decoding(keys["decoding"]).max_new_tokens or keys["max_new_tokens"]
        name = "-".join([model.name, *_seed_name(seed), keys["prompt"], keys["decoding"], str(limit)])
        run = self._run(EVALUATE, settings, "evaluated", name, training)
        return Cell(model, keys["prompt"], keys["decoding"], limit, seed, _trained_on(model, training), run)

    def _run(self, stage: str, settings: Mapping[str, Any], below: str, name: str, before: Run | None) -> Run:
        keys = resolved(build_recipe(stage, dict(settings)))
        counted = {k: v for k, v in keys.items() if k not in _NOT_IN_FINGERPRINT}
        origin = before.fingerprint if before else _adapter_fingerprint(keys["adapter"])
        fingerprint = _fingerprint({"stage": stage, "keys": counted, "adapter": origin})
        folder = self._folders.setdefault(fingerprint, _folder(self.root / below, name, fingerprint))
        return Run(stage, keys | {"output_dir": str(folder)}, fingerprint, folder, before)


def _axis(name: str, values: Any, kind: type) -> list[Any]:
    """The values of an axis, in the type it has.

    Raises:
        RecipeError: on a value of another type, or one that is there twice.
    """
    values = values if isinstance(values, list) else [values]
    wrong = [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]
    if wrong:
        raise RecipeError(f"{name}: expected a list of {kind.__name__}, got {wrong[0]!r} in it")
    if len(set(values)) < len(values):
        raise RecipeError(f"{name}: a value stands there twice: {values}")
    return values


def _file_and_keys(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys of ``evaluate``: those of its ``config`` that it knows, then its own."""
    keys = {name: value for name, value in entry.items() if name != "config"}
    refuse_decided(keys, where, SHARED_DECIDED)
    refuse_unknown(keys, [EVALUATE], where)
    settings = read_recipe_file(entry["config"]) if entry.get("config") else {}
    with _naming(where):
        build_recipe(EVALUATE, settings | keys)
    return {k: v for k, v in settings.items() if knows(EVALUATE, k) and k != "adapter"} | keys


def _trained_on(model: ModelSpec, training: Run | None) -> tuple[str, ...]:
    keys = training.keys if training else from_run_record(model.adapter) if model.adapter else {}
    prompts = keys.get("prompts") or ([keys["prompt"]] if "prompt" in keys else [])
    return tuple(prompts)


def _seed_name(seed: int | None) -> list[str]:
    return [] if seed is None else [f"seed{seed}"]


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _adapter_fingerprint(adapter: str | None) -> str | None:
    """By content: an adapter that is trained anew under the same name is another one."""
    if adapter is None:
        return None
    files = [path for name in _ADAPTER_FILES if (path := Path(adapter) / name).is_file()]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return _fingerprint(digests or adapter)


def _folder(below: Path, name: str, fingerprint: str) -> Path:
    """The folder of a run: where it is already, whatever it was called; else with a readable name."""
    there = sorted(below.glob(f"*-{fingerprint}"))
    readable = re.sub(r"[^\w.=]+", "-", name).strip("-").lower()[:90].rstrip("-")
    return there[0] if there else below / f"{readable}-{fingerprint}"


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the place in front of the messages of errors in a recipe."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def group_by_adapter(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that share a model, in order: one process evaluates them."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        origin = cell.run.after.folder if cell.run.after else (cell.model.name, cell.run.keys["adapter"])
        groups.setdefault(origin, []).append(cell)
    return list(groups.values())
