"""What is recorded of a run, and its record: ``run.json``. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scst.data.files import write_json
from scst.errors import DataError
from scst.files.json_reader import as_object, read_json_object
from scst.training.secrets import without_secrets

if TYPE_CHECKING:
    from scst.adapters.loaded import LoadedPolicy
    from scst.data.load_splits import LoadedData

RECORD_NAME = "run.json"
SETTINGS_NAME = "settings.json"
"""File of a checkpoint with the settings that it was made with."""
_PACKAGES = (
    "scst",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "deepspeed",
    "pycocoevalcap",
    "tokenizers",
)


@dataclass(frozen=True)
class Run:
    """The description of a run that its trainer does not hold.

    Attributes:
        stage: "sft" or "scst".
        settings: plain keys and values that ``run.json`` records; those of the recipe where there is one.
        data_fingerprint: fingerprint of the training data.
        images: split -> number of images.
        resume_changed: whether a resumed run may change settings that it otherwise may not
            (:mod:`scst.training.run_folder.changed_settings`).
        save_minutes: wall-clock minutes between checkpoints; 0: only as ``save_strategy`` says.
        started: ``time.time()`` at the start of the command.
    """

    stage: str
    settings: Mapping[str, Any]
    data_fingerprint: str = ""
    images: Mapping[str, int] = field(default_factory=dict)
    resume_changed: bool = False
    save_minutes: float = 0.0
    started: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls,
        stage: str,
        policy: LoadedPolicy,
        data: LoadedData,
        settings: Mapping[str, Any],
        **run: Any,
    ) -> Run:
        """The run of a policy that was loaded without a recipe; ``settings`` are recorded as plain values."""
        recorded = {
            "model_name_or_path": policy.base,
            "quantization": policy.quantization,
            "precision": policy.precision,
            "image_tokens": policy.image_tokens,
            "prompt": policy.prompt,
            "max_new_tokens": policy.max_new_tokens,
            "min_new_tokens": policy.min_new_tokens,
            "adapter_config": _adapter_config(policy.model),
            **{name: _plain(value) for name, value in settings.items()},
        }
        images = {name: len(rows) for name, rows in data.splits.items()}
        return cls(stage, recorded, data.fingerprint, images, **run)


_OF_ADAPTER = (
    *("peft_type", "r", "rank_pattern", "target_modules", "use_rslora", "use_dora"),
    *("num_virtual_tokens", "num_heads", "head_dim", "bottleneck_size", "width"),
)
"""What an adapter's configuration says of its weights; the rest changes with PEFT's version."""


def _adapter_config(model: object) -> dict[str, Any]:
    """Type, places and sizes of a model's adapter; ``{}`` for a model without one."""
    config = getattr(model, "active_peft_config", None)
    values = {name: getattr(config, name, None) for name in _OF_ADAPTER}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """A setting as a JSON value; functions become their names, other objects those of their classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    is_plain = isinstance(value, str | int | float | bool | None)
    return value if is_plain else getattr(value, "__name__", type(value).__name__)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def recorded_settings(adapter: str | Path) -> dict[str, Any]:
    """The settings that an adapter was trained with; ``{}`` when nothing says so.

    They are in ``run.json`` in the adapter's folder; that of a checkpoint has ``settings.json``, and
    ``run.json`` in the folder above once the run is complete. The base model is the one that
    ``adapter_config.json`` names, where it names one.

    Raises:
        DataError: the record cannot be read.
    """
    folder = Path(adapter)
    for record in (folder / RECORD_NAME, folder / SETTINGS_NAME, folder.parent / RECORD_NAME):
        if record.is_file():
            settings = as_object(read_json_object(record).get("recipe"), f"the recipe in {str(record)!r}")
            base = named_base_model(adapter) or settings.get("model_name_or_path")
            return settings | {"model_name_or_path": base}
    return {}


def named_base_model(adapter: str | Path) -> str | None:
    """The base model that ``adapter_config.json`` names; None when it names none or cannot be read."""
    try:
        base = read_json_object(Path(adapter) / "adapter_config.json").get("base_model_name_or_path")
    except (OSError, DataError):
        return None
    return base if isinstance(base, str) and base else None


def write_run_record(
    output_dir: str | Path,
    *,
    stage: str,
    recipe: dict[str, Any],
    data_fingerprint: str,
    started: float,
    results: dict[str, Any],
) -> None:
    """Write ``run.json``. It is the last file of a run: a folder that has it holds a complete run.

    Args:
        output_dir: the run's folder.
        stage: "sft" or "scst".
        recipe: flat keys of the recipe, defaults included; secrets in it are not written.
        data_fingerprint: fingerprint of the training data.
        started: ``time.time()`` at the start of the run.
        results: timings and final numbers.
    """
    content = {
        "stage": stage,
        "recipe": without_secrets(recipe),
        "versions": versions(),
        "data_fingerprint": data_fingerprint,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
        **results,
    }
    write_json(Path(output_dir) / RECORD_NAME, content)
