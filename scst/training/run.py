"""A training run from its first step or its newest checkpoint to a complete output folder."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from scst.adapters.loaded import LoadedPolicy
from scst.adapters.loading import adapter_weights, fill_adapter
from scst.adapters.parameters import count_parameters, parameter_table
from scst.data.files import STAGING, clean_up, move_files
from scst.data.load_splits import LoadedData
from scst.errors import Interrupted, RunStopped
from scst.files.json_reader import read_json_object
from scst.models.pretrained import allow_deepspeed_states
from scst.training import checkpoints
from scst.training.hooks import TrainerHooks
from scst.training.manifest import read_manifest
from scst.training.run_record import RECORD_NAME, write_run_record
from scst.training.signals import SaveAndStop, StopSignals


@dataclass(frozen=True)
class Run:
    """The description of a run that its trainer does not hold.

    Attributes:
        stage: "sft" or "scst".
        settings: plain keys and values that ``run.json`` records; those of the recipe where there is one.
        data_fingerprint: fingerprint of the training data.
        images: split -> number of images.
        resume: True to resume from the newest complete checkpoint of the output folder, or a checkpoint
            folder to resume from.
        save_minutes: wall-clock minutes between checkpoints; 0: only as ``save_strategy`` says.
        started: ``time.time()`` at the start of the command.
    """

    stage: str
    settings: Mapping[str, Any]
    data_fingerprint: str = ""
    images: Mapping[str, int] = field(default_factory=dict)
    resume: bool | str = False
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
            "prompt": policy.prompt,
            "max_new_tokens": policy.max_new_tokens,
            "min_new_tokens": policy.min_new_tokens,
            **{name: _plain(value) for name, value in settings.items()},
        }
        images = {name: len(rows) for name, rows in data.splits.items()}
        return cls(stage, recorded, data.fingerprint, images, **run)


def _plain(value: Any) -> Any:
    """A setting as a JSON value; functions and other objects become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return (
        value
        if isinstance(value, str | int | float | bool | dict | None)
        else getattr(value, "__name__", str(value))
    )


def run_training(trainer: TrainerHooks, run: Run, console: Console) -> None:
    """Train, or resume, and write the output folder: adapter, processor, trainer state, ``run.json``.

    Raises:
        Interrupted: after SIGTERM or SIGINT; the message says whether a checkpoint was saved.
        RunStopped: when the output cannot be written.
    """
    output_dir = trainer.output_dir
    checkpoint = checkpoints.checkpoint_to_resume(str(output_dir), run.resume, console.print)
    if run.resume and checkpoint is None:
        console.print(f"resume: no complete checkpoint in {output_dir}; starting from the beginning")
    elif checkpoint:
        console.print(f"resuming from {checkpoint}")
    console.print(parameter_table(trainer.model))
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.is_deepspeed_enabled:
        allow_deepspeed_states()
    record = output_dir / RECORD_NAME
    if checkpoint and has_ended(checkpoint, total_steps(trainer)):
        console.print(f"{run.stage}: all {newest_step(checkpoint)} steps were done; nothing is trained again")
        if record.is_file():
            return
        restore_finished(trainer, checkpoint)
        seconds = 0.0
    else:
        if trainer.is_world_process_zero():
            record.unlink(missing_ok=True)  # of a shorter run that this one continues
        seconds = _train(trainer, run, checkpoint)
    save_output(trainer)
    if trainer.is_world_process_zero():
        write_run_record(
            output_dir,
            stage=run.stage,
            recipe=dict(run.settings),
            data_fingerprint=run.data_fingerprint,
            started=run.started,
            results=_results(trainer, run, seconds),
        )
    console.print(
        f"[bold]{run.stage} done[/bold]: {trainer.state.global_step} steps in "
        f"{time.time() - run.started:.0f} s; adapter in {output_dir}"
    )


def _train(trainer: TrainerHooks, run: Run, checkpoint: str | None) -> float:
    """Train; returns seconds.

    Raises:
        Interrupted: after SIGTERM or SIGINT.
    """
    with StopSignals().installed() as signals:
        stop = SaveAndStop(signals, run.save_minutes)
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.interrupted_by is None:
        return result.metrics["train_runtime"]
    newest = checkpoints.newest_complete(trainer.output_dir)
    saved = f"{newest} is complete; go on with --resume true" if newest else "no checkpoint could be written"
    raise Interrupted(
        f"{signal.Signals(stop.interrupted_by).name}: stopped at step {trainer.state.global_step} of "
        f"{trainer.state.max_steps}; {saved}",
        stop.interrupted_by,
    )


def _results(trainer: TrainerHooks, run: Run, seconds: float) -> dict[str, Any]:
    """The results that ``run.json`` records."""
    parts = count_parameters(trainer.model)
    trainable, total = sum(part.trainable for part in parts), sum(part.total for part in parts)
    alarms = [str(alarm) for monitor in trainer.monitors for alarm in monitor.alarms]
    skipped, failed = trainer.guard.skipped_steps, trainer.checkpointer.failed_saves
    return {
        "train_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "best_metric": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "images": dict(run.images),
        "trainable_parameters": trainable,
        "trainable_share": trainable / total,
        **({"alarms": alarms} if alarms else {}),
        **({"skipped_steps": skipped} if skipped else {}),
        **({"failed_saves": failed} if failed else {}),
    }


def save_output(trainer: TrainerHooks) -> None:
    """Write adapter, processor and state into the output folder.

    The files are written to a staging folder and moved, so that none of them is ever half written.

    Raises:
        RunStopped: when they cannot be written.
        Diverged: when the adapter holds NaN or infinity.
    """
    output_dir = trainer.output_dir
    staged = output_dir / STAGING / "output"
    trainer.refuse_ruined_weights()
    try:
        if trainer.args.should_save:
            clean_up(output_dir)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staged), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            move_files(staged, output_dir)
            clean_up(output_dir)
        trainer.save_state()
    except Exception as error:
        if not checkpoints.is_write_failure(error):
            raise
        newest = checkpoints.newest_complete(output_dir)
        raise RunStopped(
            f"all steps are done, but the adapter cannot be written to {output_dir}: {error}. Make room and "
            f"repeat the command with --resume true; newest complete checkpoint: {newest or 'none'}"
        ) from error
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)


def total_steps(trainer: TrainerHooks) -> int:
    """Optimizer steps of the whole run.

    Computed before training, because ``transformers`` would train one step more when it resumes a run that
    has already made its last step.
    """
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = len(trainer.get_train_dataloader())
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def has_ended(checkpoint: str, steps: int) -> bool:
    """Whether the run had ended when the checkpoint was written: all steps, early stopping or an alarm."""
    return newest_step(checkpoint) >= steps or bool(read_manifest(checkpoint)["ended"])


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
