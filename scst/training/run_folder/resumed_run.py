"""A run that is resumed: whether it may be, whether it had ended, and what it had trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from scst.adapters.loading import adapter_weights, fill_adapter
from scst.data.terminal import plain
from scst.files.json_reader import read_json_object
from scst.training.arguments.argument_checks import DEFAULTS
from scst.training.hooks import TrainerHooks
from scst.training.run_folder.changed_settings import refuse_changes
from scst.training.run_folder.manifest import read_manifest


def check_resumed(
    checkpoint: str,
    record: Mapping[str, Any],
    arguments_class: type[transformers.TrainingArguments],
    *,
    insist: bool,
    console: Console,
) -> None:
    """Refuse to resume with other settings or data than the checkpoint was made with.

    Args:
        checkpoint: folder of the checkpoint.
        record: :func:`scst.training.run_folder.changed_settings.settings_record` of the run.
        arguments_class: of the trainer's arguments; its defaults count where a setting is not named.
        insist: accept changes that can be made at all.
        console: where accepted changes are told.

    Raises:
        RecipeError: naming the settings with both values.
    """
    fields = dataclasses.fields(arguments_class)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | DEFAULTS
    refuse_changes(
        checkpoint,
        record,
        defaults=defaults,
        insist=insist,
        say=lambda line: console.print(plain(line)),
    )


def has_ended(checkpoint: str, steps: int, patience: int | None) -> bool:
    """Whether the run had ended when the checkpoint was written: all steps, early stopping or an alarm.

    Args:
        checkpoint: folder of the checkpoint.
        steps: optimizer steps of the run that is resumed.
        patience: of its early stopping; a run that was stopped for less has not ended.
    """
    if newest_step(checkpoint) >= steps:
        return True
    return bool(read_manifest(checkpoint)["ended"]) and not _has_patience_left(checkpoint, patience)


def _has_patience_left(checkpoint: str, patience: int | None) -> bool:
    """Whether early stopping ended the run of a checkpoint, and would not with this patience."""
    callbacks = read_json_object(Path(checkpoint) / "trainer_state.json").get("stateful_callbacks", {})
    state = callbacks.get("EarlyStoppingCallback")
    if not isinstance(state, dict):
        return False
    waited = state["attributes"]["early_stopping_patience_counter"]
    was_the_cause = waited >= state["args"]["early_stopping_patience"]
    return was_the_cause and (patience is None or patience > waited)


def newest_step(checkpoint: str) -> int:
    """The optimizer step at which a checkpoint was written."""
    return int(read_json_object(Path(checkpoint) / "trainer_state.json")["global_step"])


def restore_finished(trainer: TrainerHooks, checkpoint: str) -> None:
    """Load state and adapter of a run that ended, but was killed before its output was written."""
    trainer.state = transformers.TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    best = best if best and os.path.isdir(best) else checkpoint
    fill_adapter(trainer.model, adapter_weights(Path(best)), Path(best))
    trainer.checkpointer.restore(checkpoint)
    for monitor in trainer.monitors:
        monitor.restore_adapter(trainer.model, trainer.output_dir, trainer.state.global_step)
