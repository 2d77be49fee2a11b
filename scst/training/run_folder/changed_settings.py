"""What a resumed run may change, and the refusal of everything else.

Every checkpoint holds, in ``settings.json``, the settings and the fingerprint of the data that it was made
with. Nothing here imports torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scst.data.files import write_json
from scst.errors import DataError, RecipeError
from scst.files.json_reader import read_json_object
from scst.training.run_folder.run_record import SETTINGS_NAME
from scst.training.secrets import without_secrets

MAY_CHANGE = {
    "length": ("max_steps", "num_train_epochs", "early_stopping_patience", "max_skipped_steps"),
    "saving": ("save_*", "output_dir", "push_to_hub", "hub_*"),
    "logging": ("logging_*", "log_level*", "report_to", "run_name", "project", "trackio_*", "table_steps"),
    "evaluation intervals": ("eval_steps", "eval_delay", "eval_on_start"),
    "where the data lies": ("dataset", "dataloader_*"),
    "memory": (
        *("gradient_checkpointing*", "per_device_eval_batch_size", "eval_accumulation_steps"),
        *("validation_batch_size", "scoring_batch_size", "head_chunk", "feature_cache", "rollout_weights"),
    ),
    "starting": ("resume", "resume_changed", "overwrite"),
}
"""Kind -> patterns of keys that a resumed run may change; they take effect."""

CANNOT_CHANGE = (
    *("stage", "optim", "adapter_type", "adapter_config", "lora_rank", "lora_rank_pattern", "lora_targets"),
    *("lora_variant", "num_virtual_tokens", "bottleneck_size", "bottleneck_places", "model_name_or_path"),
)
"""Keys that make weights or an optimizer state which a checkpoint does not fit."""

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def write_settings(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the settings of a run into the folder of a checkpoint."""
    write_json(folder / SETTINGS_NAME, record)


def settings_record(stage: str, settings: Mapping[str, Any], data_fingerprint: str) -> dict[str, Any]:
    """The content of ``settings.json``; secrets are left out. The adapter to begin with counts by content."""
    adapter = _adapter_sum(settings.get("adapter"))
    return {
        "stage": stage,
        "recipe": without_secrets(dict(settings)),
        "data_fingerprint": data_fingerprint,
        "adapter_sha256": adapter,
    }


def _adapter_sum(adapter: object) -> str | None:
    """SHA-256 sum of an adapter's weights; None when there are none."""
    weights = Path(adapter) / "adapter_model.safetensors" if isinstance(adapter, str) else None
    if weights is None or not weights.is_file():
        return None
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_changes(
    checkpoint: str | Path,
    record: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    insist: bool,
    say: Callable[[str], None],
) -> None:
    """Compare a run with the one that wrote the checkpoint it is to be resumed from.

    Args:
        checkpoint: folder of a complete checkpoint.
        record: of the run that resumes, by :func:`settings_record`; a fingerprint of "" is not compared.
        defaults: values of settings that one of the two does not name.
        insist: accept changes that can be made at all.
        say: called with a line of text about the changes that are accepted.

    Raises:
        RecipeError: naming every setting that may not change, with both values.
    """
    before = _read(Path(checkpoint) / SETTINGS_NAME)
    if before is None:
        say(f"resume: {checkpoint} does not say what it was made with; settings and data are not compared")
        return
    changes = _changes(before, record, defaults)
    impossible = {name: change for name, change in changes.items() if name in CANNOT_CHANGE}
    if impossible:
        raise RecipeError(
            f"resume: {checkpoint} was made with {_described(impossible)}: its state does not fit; give the "
            "old values, or begin a new run in another output_dir"
        )
    refused = {name: change for name, change in changes.items() if not may_change(name)}
    if refused and not insist:
        raise RecipeError(
            f"resume: {checkpoint} was made with {_described(refused)}. Give the old values, begin a new run "
            "in another output_dir, or insist with --resume_changed true. What may change without that: "
            f"{', '.join(MAY_CHANGE)} (docs/unkillable.md)"
        )
    told = {name: change for name, change in changes.items() if not _matches(name, MAY_CHANGE["starting"])}
    if told:
        say(f"resume: changed are {_described(told)}")


def may_change(name: str) -> bool:
    """Whether a resumed run may change a setting without insisting."""
    return any(_matches(name, patterns) for patterns in MAY_CHANGE.values())


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(path: Path) -> dict[str, Any] | None:
    """The record of a checkpoint; None for one that has none (version 0.2.0 and before)."""
    try:
        content = read_json_object(path)
    except (OSError, DataError):
        return None
    return content if isinstance(content.get("recipe"), dict) else None


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Setting -> (old value, new value) of what differs."""
    old = {"stage": before.get("stage"), **before["recipe"]}
    new = json.loads(json.dumps({"stage": now["stage"], **now["recipe"]}, default=str))
    known = json.loads(json.dumps(dict(defaults), default=str))
    names = old.keys() | new.keys()
    if ("adapter_config" in old) != ("adapter_config" in new):  # one of a recipe, one from Python
        names = old.keys() & new.keys()
    pairs = {name: tuple(each.get(name, known.get(name)) for each in (old, new)) for name in sorted(names)}
    changes = {name: (a, b) for name, (a, b) in pairs.items() if a != b}
    if _images_per_step(old, known) == _images_per_step(new, known):  # the same images, cut in another way
        changes = {name: change for name, change in changes.items() if name not in _BATCH}
    data, adapter = ((before.get(n), now.get(n)) for n in ("data_fingerprint", "adapter_sha256"))
    if all(adapter):  # by what it is, not by where it lies
        changes.pop("adapter", None)
    for name, (a, b) in {"data (fingerprint)": data, "adapter (SHA-256)": adapter}.items():
        if a and b and a != b:
            changes[name] = a, b
    return changes


def _images_per_step(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> int | None:
    """Images per optimizer step; processes share them, so that their number does not count."""
    sizes = [settings.get(name, defaults.get(name)) for name in _BATCH]
    return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None


def _described(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name}: {_short(a)} (now {_short(b)})" for name, (a, b) in changes.items())


def _short(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    text = json.dumps(int(value) if whole else value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
