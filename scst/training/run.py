"""A training run from its first step or its newest checkpoint to a complete output folder."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import transformers
from peft import load_peft_weights, set_peft_model_state_dict
from rich.console import Console

from scst.adapters.parameters import count_parameters, parameter_table
from scst.config.reader import resolved
from scst.data.loading import LoadedData
from scst.errors import Interrupted, RunStopped
from scst.models.loading import allow_deepspeed_states
from scst.training import checkpoints
from scst.training.run_record import RECORD_NAME, write_run_record
from scst.training.signals import SaveAndStop, StopSignals


def run_training(
    trainer: Any, recipe: Any, data: LoadedData, *, stage: str, console: Console, started: float
) -> None:
    """Train, resume when asked, and leave a complete folder: adapter, processor, state, ``run.json``.

    Raises:
        Interrupted: after SIGTERM or SIGINT, when a checkpoint was saved.
        RunStopped: when the output cannot be written.
    """
    checkpoint = checkpoints.checkpoint_to_resume(recipe.output_dir, recipe.resume, console.print)
    if recipe.resume and checkpoint is None:
        console.print(f"resume: no complete checkpoint in {recipe.output_dir}; starting from the beginning")
    elif checkpoint:
        console.print(f"resuming from {checkpoint}")
    console.print(parameter_table(trainer.model))
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.is_deepspeed_enabled:
        allow_deepspeed_states()
    record = Path(recipe.output_dir) / RECORD_NAME
    if checkpoint and has_ended(checkpoint, total_steps(trainer)):
        console.print(f"{stage}: all {newest_step(checkpoint)} steps were done; nothing is trained again")
        if record.is_file():
            return
        restore_finished(trainer, checkpoint)
        seconds = 0.0
    else:
        if trainer.is_world_process_zero():
            record.unlink(missing_ok=True)  # of a shorter run that this one goes on from
        seconds = _train(trainer, recipe, checkpoint)
    save_output(trainer)
    if trainer.is_world_process_zero():
        write_run_record(
            recipe.output_dir,
            stage=stage,
            recipe=resolved(recipe),
            data_fingerprint=data.fingerprint,
            started=started,
            results=_results(trainer, data, seconds),
        )
    console.print(
        f"[bold]{stage} done[/bold]: {trainer.state.global_step} steps in {time.time() - started:.0f} s; "
        f"adapter in {Path(recipe.output_dir)}"
    )


def _train(trainer: Any, recipe: Any, checkpoint: str | None) -> float:
    """Seconds of training; interrupted runs end here."""
    trainer.max_skipped_steps = recipe.max_skipped_steps
    with StopSignals().installed() as signals:
        stop = SaveAndStop(trainer.accelerator, signals, recipe.save_minutes)
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.interrupted_by is None:
        return result.metrics["train_runtime"]
    newest = checkpoints.newest_complete(recipe.output_dir)
    saved = f"{newest} is complete; go on with --resume true" if newest else "no checkpoint could be written"
    raise Interrupted(
        f"{signal.Signals(stop.interrupted_by).name}: stopped at step {trainer.state.global_step} of "
        f"{trainer.state.max_steps}; {saved}",
        stop.interrupted_by,
    )


def _results(trainer: Any, data: LoadedData, seconds: float) -> dict[str, Any]:
    """What ``run.json`` says about the run's end."""
    results = {
        "train_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "best_metric": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "images": {name: len(rows) for name, rows in data.splits.items()},
    }
    alarms = [str(a) for c in trainer.callback_handler.callbacks for a in getattr(c, "alarms", ())]
    parts = count_parameters(trainer.model)
    trainable, whole = sum(part.trainable for part in parts), sum(part.total for part in parts)
    results |= {"trainable_parameters": trainable, "trainable_share": trainable / whole}
    results |= {"alarms": alarms} if alarms else {}
    results |= {"skipped_steps": trainer.skipped_steps} if trainer.skipped_steps else {}
    results |= {"failed_saves": trainer.failed_saves} if trainer.failed_saves else {}
    return results


def save_output(trainer: Any) -> None:
    """Adapter, processor and state into the output folder: each file is the old one or the new one.

    Raises:
        RunStopped: when they cannot be written.
    """
    output_dir = Path(trainer.args.output_dir)
    aside = output_dir / checkpoints.ASIDE / "output"
    try:
        if trainer.args.should_save:
            checkpoints.sweep(output_dir)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(aside), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            checkpoints.move_files(aside, output_dir)
            checkpoints.sweep(output_dir)
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


def total_steps(trainer: Any) -> int:
    """Optimizer steps of the whole run; `transformers` would add one to a run that is resumed at its end."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = len(trainer.get_train_dataloader())
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def has_ended(checkpoint: str, steps: int) -> bool:
    """Whether a run was over when the checkpoint was written: all steps, early stopping or an alarm."""
    return newest_step(checkpoint) >= steps or bool(checkpoints.read_seal(checkpoint).get("ended"))


def newest_step(checkpoint: str) -> int:
    """The step a checkpoint was written at."""
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"]


def restore_finished(trainer: Any, checkpoint: str) -> None:
    """State and adapter of a run that was stopped after its last step, before its output was complete."""
    trainer.state = transformers.TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    best = best if best and os.path.isdir(best) else checkpoint
    set_peft_model_state_dict(trainer.model, load_peft_weights(best, device="cpu"))
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "restore_finished"):
            callback.restore_finished(trainer.args, trainer.state, trainer.model)
