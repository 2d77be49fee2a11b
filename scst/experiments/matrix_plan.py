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
from itertools import product
from pathlib import Path
from typing import Any

from scst.errors import RecipeError
from scst.evaluation.decoding import get_decoding
from scst.experiments.matrix_models import (
    SHARED_DECIDED,
    ModelSpec,
    StageSpec,
    grid_keys_for,
    keys_for,
    label_up_to,
    read_models,
    refuse_decided,
    refuse_unknown,
)
from scst.experiments.stage_keys import EVALUATE, STAGES, StageKeys
from scst.training.run_folder.run_record import RECORD_NAME

METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
_NOT_IN_FINGERPRINT = (
    *("output_dir", "adapter", "resume", "resume_changed", "overwrite", "resplit"),
    *("report_to", "run_name", "table_steps"),
)
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
        """Whether the file that is written last exists."""
        return (self.folder / (METRICS_FILE if self.stage == EVALUATE else RECORD_NAME)).is_file()

    @property
    def state(self) -> str:
        """complete, begun or to do."""
        if self.is_complete:
            return "complete"
        return "begun" if any(self.folder.glob("checkpoint-*")) else "to do"

    @property
    def place(self) -> str:
        """Its folder, relative to that of the matrix."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def chain(self) -> list[Run]:
        """The trainings that it builds upon, in order."""
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


@dataclass(frozen=True)
class Axes:
    """What every model of a matrix is evaluated with.

    Attributes:
        prompts: instructions; none: the one each model was trained on.
        decodings: names of decoding presets; none: that of the evaluation's keys.
        max_new_tokens: length limits; none: that of the evaluation's keys.
        seeds: of trainings and evaluations, each once per seed; none: those of their keys.

    Raises:
        RecipeError: a value of another type, or one that is there twice.
    """

    prompts: Sequence[str] = ()
    decodings: Sequence[str] = ()
    max_new_tokens: Sequence[int] = ()
    seeds: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, kind in (("decodings", str), ("max_new_tokens", int), ("seeds", int)):
            _check_axis(name, getattr(self, name), kind)


def make_plan(
    models: Sequence[Mapping[str, Any]],
    axes: Axes,
    stage_keys: StageKeys,
    *,
    output_dir: str | Path,
    common: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
) -> Plan:
    """Every run of a matrix with all its keys; may read recipe files, loads no model.

    Args:
        models: entries as in a matrix recipe, see :func:`scst.experiments.matrix_models.read_models`.
        axes: what the models are evaluated with.
        stage_keys: which keys the stages have, and their defaults.
        output_dir: of the matrix; every run gets a folder in it.
        common: keys for all stages and evaluations that know them.
        evaluate: keys of every evaluation, and ``config``: their recipe file.

    Raises:
        RecipeError: naming the model and the key.
    """
    found = read_models(models, stage_keys)
    planner = _Planner(axes, stage_keys, Path(output_dir), common or {}, evaluate or {})
    return Plan(tuple(cell for model in found for cell in planner.cells(model)))


class _Planner:
    """Resolves models with the axes and keys that all of them share."""

    def __init__(
        self,
        axes: Axes,
        stage_keys: StageKeys,
        root: Path,
        common: Mapping[str, Any],
        evaluate: Mapping[str, Any],
    ):
        self.axes, self.stage_keys, self.root, self.common = axes, stage_keys, root, common
        refuse_decided(common, "common", SHARED_DECIDED)
        refuse_unknown(common, [*STAGES, EVALUATE], "common", stage_keys)
        self.evaluate = self._file_and_keys(evaluate, "evaluate")
        self._folders: dict[str, Path] = {}

    def cells(self, model: ModelSpec) -> Iterator[Cell]:
        """The cells of one model, seed by seed."""
        with _naming(f"models: {model.name}"):
            for position, seed in enumerate(self.axes.seeds or [None]):
                training = self._train(model, seed)
                given = self._given(model, training)
                for changes in self._settings():
                    cell = self._cell(model, training, given, changes, seed)
                    # without training and sampling, captions are the same for every seed
                    depends_on_seed = model.stages or get_decoding(cell.decoding).do_sample
                    if depends_on_seed or position == 0:
                        yield cell

    def _settings(self) -> Iterator[dict[str, Any]]:
        """The combinations of prompt, decoding and length limit that the matrix itself sets."""
        axes: dict[str, Sequence[Any]] = {
            "prompt": self.axes.prompts,
            "decoding": self.axes.decodings,
            "max_new_tokens": self.axes.max_new_tokens,
        }
        given = {name: values for name, values in axes.items() if values}
        for point in product(*given.values()):
            yield dict(zip(given, point, strict=True))

    def _train(self, model: ModelSpec, seed: int | None) -> Run | None:
        before = None
        for position, stage in enumerate(model.stages):
            with _naming(f"stage {position + 1} ({stage.stage})"):
                before = self._stage(model, stage, position, seed, before)
        return before

    def _stage(
        self, model: ModelSpec, stage: StageSpec, position: int, seed: int | None, before: Run | None
    ) -> Run:
        settings = self.stage_keys.read_file(stage.config) if stage.config else {}
        settings |= self._known(stage.stage, self.common)
        settings |= keys_for(model, stage.stage, self.stage_keys) | dict(stage.keys)
        settings |= grid_keys_for(model, stage.stage, self.stage_keys)
        settings |= {} if seed is None else {"seed": seed}
        adapter = str(before.folder) if before else model.adapter
        # last: whatever the recipe says, a stage continues its own run and never replaces one
        settings |= {"adapter": adapter, "resume": True, "overwrite": False}
        name = "-".join([label_up_to(model, position, self.stage_keys), *_seed_name(seed), stage.stage])
        return self._run(stage.stage, settings, "trained", name, before)

    def _given(self, model: ModelSpec, training: Run | None) -> dict[str, Any]:
        """Keys of every evaluation of a model: first what it was trained with, then what is asked for."""
        trained = self._trained_with(model, training)
        given = self._known(EVALUATE, trained)
        asked = self.evaluate | self._known(EVALUATE, self.common)
        asked |= keys_for(model, EVALUATE, self.stage_keys)
        asked |= grid_keys_for(model, EVALUATE, self.stage_keys)
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
        keys = self.stage_keys.complete(EVALUATE, settings)
        limit = get_decoding(keys["decoding"]).max_new_tokens or keys["max_new_tokens"]
        name = "-".join([model.name, *_seed_name(seed), keys["prompt"], keys["decoding"], str(limit)])
        run = self._run(EVALUATE, settings, "evaluated", name, training)
        return Cell(
            model, keys["prompt"], keys["decoding"], limit, seed, self._trained_on(model, training), run
        )

    def _run(self, stage: str, settings: Mapping[str, Any], below: str, name: str, before: Run | None) -> Run:
        keys = self.stage_keys.complete(stage, settings)
        counted = {k: v for k, v in keys.items() if k not in _NOT_IN_FINGERPRINT}
        # what the run builds upon counts by content, and not by the place where it lies
        origin = before.fingerprint if before else _adapter_fingerprint(keys["adapter"])
        fingerprint = _fingerprint({"stage": stage, "keys": counted, "adapter": origin})
        # equal runs of different models share a folder, so that each is made once
        folder = self._folders.setdefault(fingerprint, _folder(self.root / below, name, fingerprint))
        return Run(stage, keys | {"output_dir": str(folder)}, fingerprint, folder, before)

    def _known(self, stage: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in keys.items() if self.stage_keys.knows(stage, name)}

    def _file_and_keys(self, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Keys of ``evaluate``: those of its ``config`` that it knows, then its own."""
        keys = {name: value for name, value in entry.items() if name != "config"}
        refuse_decided(keys, where, SHARED_DECIDED)
        refuse_unknown(keys, [EVALUATE], where, self.stage_keys)
        settings = self.stage_keys.read_file(entry["config"]) if entry.get("config") else {}
        with _naming(where):
            self.stage_keys.complete(EVALUATE, settings | keys)
        return {k: v for k, v in self._known(EVALUATE, settings).items() if k != "adapter"} | keys

    def _trained_with(self, model: ModelSpec, training: Run | None) -> Mapping[str, Any]:
        if training is not None:
            return training.keys
        return self.stage_keys.trained_with(model.adapter) if model.adapter else {}

    def _trained_on(self, model: ModelSpec, training: Run | None) -> tuple[str, ...]:
        """The prompts that a model was trained on."""
        keys = self._trained_with(model, training)
        return tuple(keys.get("prompts") or ([keys["prompt"]] if "prompt" in keys else []))


def _check_axis(name: str, values: Sequence[Any], kind: type) -> None:
    wrong = [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]
    if wrong:
        raise RecipeError(f"{name}: expected a list of {kind.__name__}, got {wrong[0]!r} in it")
    if len(set(values)) < len(values):
        raise RecipeError(f"{name}: a value stands there twice: {list(values)}")


def _seed_name(seed: int | None) -> list[str]:
    return [] if seed is None else [f"seed{seed}"]


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _adapter_fingerprint(adapter: str | None) -> str | None:
    """Fingerprint of an adapter's content: one that was trained again under the same name has another."""
    if adapter is None:
        return None
    files = [path for name in _ADAPTER_FILES if (path := Path(adapter) / name).is_file()]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return _fingerprint(digests or adapter)


def _folder(below: Path, name: str, fingerprint: str) -> Path:
    """The folder of a run: an existing one with its fingerprint, whatever its name; else a readable name."""
    there = sorted(below.glob(f"*-{fingerprint}"))
    readable = re.sub(r"[^\w.=]+", "-", name).strip("-").lower()[:90].rstrip("-")
    return there[0] if there else below / f"{readable}-{fingerprint}"


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Prefix the messages of recipe errors with the place where they occurred."""
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
