"""What the training of an adapter logged, of both stages: from ``trainer_state.json`` and ``run.json``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scst.data.visible import visible
from scst.errors import DataError
from scst.files.json_reader import read_json
from scst.training.run_folder.run_record import RECORD_NAME

logger = logging.getLogger(__name__)

STATE_NAME = "trainer_state.json"
_LONGEST_CHAIN = 8  # adapters continued from adapters


@dataclass(frozen=True)
class TrainingStage:
    """One training run.

    Attributes:
        name: "sft", "scst", or "training" where there is no record.
        folder: where it was read.
        recipe: the flat keys it ran with; empty where there is no record.
        log: entries of the trainer's log, numbers only, each with its ``step``.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]

    def series(self, name: str, most: int = 150) -> list[tuple[float, float]]:
        """(step, value) of a logged number; more than ``most`` points become means of neighbours."""
        points = [(entry["step"], entry[name]) for entry in self.log if name in entry]
        size = math.ceil(len(points) / most)
        parts = [points[start : start + size] for start in range(0, len(points), max(1, size))]
        return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards that it optimised."""
        prefix = "advantage_share_"
        found = (name.removeprefix(prefix) for entry in self.log for name in entry if name.startswith(prefix))
        return list(dict.fromkeys(found))


def training_stages(adapter: str | Path | None) -> list[TrainingStage]:
    """The runs that an adapter was trained in, oldest first; none for a base model or an adapter of the hub.

    An SCST run names the adapter that it refined; it is looked for where its record says, and beside the run.
    """
    stages: list[TrainingStage] = []
    seen: set[Path] = set()
    folder = _existing(adapter)
    while folder is not None and folder.resolve() not in seen and len(seen) < _LONGEST_CHAIN:
        seen.add(folder.resolve())
        stage = read_stage(folder)
        if stage is None:
            break
        stages.append(stage)
        folder = _source(stage)
    return stages[::-1]


def read_stage(folder: str | Path) -> TrainingStage | None:
    """Read the log of the run that wrote a folder, or a checkpoint in it; None without a readable log."""
    folder = Path(folder)
    state = _read_json(folder / STATE_NAME)
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        return None
    record = _read_json(folder / RECORD_NAME) or _read_json(folder.parent / RECORD_NAME)
    record = record if isinstance(record, dict) else {}
    recipe = record.get("recipe")
    log = [numbers for entry in state["log_history"] if "step" in (numbers := _numbers(entry))]
    name = str(record.get("stage", "training"))
    return TrainingStage(name, folder, recipe if isinstance(recipe, dict) else {}, log)


def _source(stage: TrainingStage) -> Path | None:
    """The adapter that a run continued."""
    named = stage.recipe.get("adapter")
    if not isinstance(named, str) or not named:
        return None
    run = stage.folder.parent if stage.folder.name.startswith("checkpoint-") else stage.folder
    return _existing(named) or _existing(run.parent / Path(named).name)


def _existing(folder: str | Path | None) -> Path | None:
    return Path(folder) if folder is not None and Path(folder).is_dir() else None


def _read_json(path: Path) -> Any:
    """The content; None when there is none. A damaged log costs its curves, not the evaluation."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except (OSError, DataError) as error:
        logger.warning("%s: the report goes without it", visible(f"{path} cannot be read ({error})"))
        return None


def _numbers(entry: Any) -> dict[str, float]:
    """The finite numbers of a log entry."""
    items = entry.items() if isinstance(entry, dict) else ()
    return {
        name: value
        for name, value in items
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
