"""A training run from its first step or its newest checkpoint to a complete output folder."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeVar

import transformers
from rich.console import Console

from scst.adapters.loaded import LoadedPolicy
from scst.adapters.parameters import count_parameters, parameter_table
from scst.data.files import STAGING, clean_up
from scst.data.load_splits import LoadedData
from scst.data.terminal import labelled, plain
from scst.distributed.processes import first_message
from scst.distributed.sharded_weights import unsharded
from scst.errors import Interrupted, RunStopped
from scst.models.pretrained import allow_deepspeed_states
from scst.training.arguments.training_arguments import default_settings
from scst.training.forward_check import check_forward
from scst.training.hooks import TrainerHooks
from scst.training.monitors.monitor import TRUSTED
from scst.training.run_folder import checkpoints
from scst.training.run_folder.changed_settings import settings_record
from scst.training.run_folder.claim import claimed_output
from scst.training.run_folder.manifest import verify
from scst.training.run_folder.output_folder import OutputFolder
from scst.training.run_folder.resumed_run import check_resumed, has_ended, newest_step, restore_finished
from scst.training.run_folder.run_record import RECORD_NAME, Run, write_run_record
from scst.training.signals import SaveAndStop, StopSignals

T = TypeVar("T", bound=TrainerHooks)


def train_policy(
    stage: str,
    build_trainer: Callable[..., T],
    policy: LoadedPolicy,
    data: LoadedData,
    output_dir: str,
    own: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    epochs: float | None,
    resume: bool | str,
    resume_changed: bool,
    overwrite: bool,
    save_minutes: float,
    console: Console | None,
) -> T:
    """A stage as a function: claim the output folder, build the trainer, and run it; returns the trainer.

    Args:
        stage: "sft" or "scst".
        build_trainer: of the stage; called with policy, data, folder, console, ``training`` and ``own``.
        policy: with the adapter that is trained.
        data: what it is trained on.
        output_dir: of the run.
        own: arguments of ``build_trainer``.
        training: training arguments by name.
        epochs, resume, resume_changed, overwrite, save_minutes, console: as of :func:`scst.finetune`.
    """
    started, console = time.time(), console or Console()
    training = dict(training) | ({} if epochs is None else {"num_train_epochs": epochs})
    with claimed_output(output_dir, resume=resume, overwrite=overwrite, console=console) as output:
        trainer = build_trainer(policy, data, output_dir, console=console, training=training, **own)
        settings = default_settings(build_trainer) | dict(own) | training
        run = Run.of(
            stage,
            policy,
            data,
            settings,
            resume_changed=resume_changed,
            save_minutes=save_minutes,
            started=started,
        )
        with closing(trainer):
            run_training(trainer, run, output, console)
    return trainer


def run_training(trainer: TrainerHooks, run: Run, output: OutputFolder, console: Console) -> None:
    """Train, or resume, and write the output folder: adapter, processor, trainer state, ``run.json``.

    Args:
        trainer: built and checked.
        run: its description.
        output: the claimed output folder; nothing was written into it yet.
        console: where the run says what it does.

    Raises:
        RecipeError: when the checkpoint to resume from was made with other settings or data.
        ScstError: when the model is not computed as its own ``forward`` computes it.
        Interrupted: after SIGTERM, SIGINT or SIGHUP; the message says whether a checkpoint was saved.
        RunStopped: when the output cannot be written.
    """
    trainer.settings = settings_record(run.stage, run.settings, run.data_fingerprint)
    checkpoint = output.checkpoint
    if checkpoint:
        check_resumed(
            checkpoint, trainer.settings, type(trainer.args), insist=run.resume_changed, console=console
        )
        console.print(plain(f"resuming from {checkpoint}"))
    console.print(parameter_table(trainer.model))
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.is_deepspeed_enabled:
        allow_deepspeed_states()
    patience = trainer.early_stopping_patience
    if checkpoint and has_ended(checkpoint, steps := total_steps(trainer), patience):
        made = newest_step(checkpoint)
        how = f"all {made} steps were done" if made >= steps else f"it ended early, at step {made} of {steps}"
        console.print(plain(f"{run.stage}: {how}; nothing is trained again"))
        restore_finished(trainer, checkpoint)
        if (output.path / RECORD_NAME).is_file():
            return
        _begin(trainer, output)
        seconds = 0.0
    else:
        with unsharded(trainer.model), trainer.compute_loss_context_manager():
            check_forward(trainer.model, trainer.data_collator, trainer.stream or trainer.train_dataset)
        _begin(trainer, output)
        trainer.add_callback(_ResultOf(output))
        seconds = _train(trainer, run, checkpoint)
    save_output(trainer, output)
    if trainer.is_world_process_zero():
        write_run_record(
            output.path,
            stage=run.stage,
            recipe=dict(run.settings),
            data_fingerprint=run.data_fingerprint,
            started=run.started,
            results=_results(trainer, run, seconds),
        )
        output.has_result()
    seconds = time.time() - run.started
    done = f"{trainer.state.global_step} steps in {seconds:.0f} s; adapter in {output.path}"
    console.print(labelled(f"{run.stage} done:", "bold", done))


def _begin(trainer: TrainerHooks, output: OutputFolder) -> None:
    """Begin to write: move aside what is replaced, and write the tables of the stage. Collective.

    Raises:
        RunStopped: on all processes, when the folder cannot be written.
    """
    fault = None
    if trainer.is_world_process_zero():
        try:
            output.begin()
            tables = output.path / STAGING / "tables"
            tables.mkdir(parents=True)
            trainer.write_tables(tables)
            output.place(tables)
            clean_up(output.path)
            output.add(TRUSTED, "trainer_state.json")
        except OSError as error:
            fault = f"{output.path} cannot be written: {error}"
    if fault := first_message(fault):
        raise RunStopped(fault)


class _ResultOf(transformers.TrainerCallback):
    """Tells the output folder of the first complete checkpoint."""

    def __init__(self, output: OutputFolder):
        self.output = output
        self._has_one = False

    def on_save(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        """After a checkpoint was written, or could not be."""
        newest = self.output.path / f"{checkpoints.PREFIX}{state.global_step}"
        if state.is_world_process_zero and not self._has_one and not verify(newest, sums=False):
            self.output.has_checkpoint()
            self._has_one = True


def _train(trainer: TrainerHooks, run: Run, checkpoint: str | None) -> float:
    """Train; returns seconds.

    Raises:
        Interrupted: after SIGTERM, SIGINT or SIGHUP.
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


def save_output(trainer: TrainerHooks, output: OutputFolder) -> None:
    """Write adapter, processor and state into the output folder.

    The files are written to a staging folder and moved, so that none of them is ever half written.

    Raises:
        RunStopped: when they cannot be written.
        Diverged: when the adapter holds NaN or infinity.
    """
    output_dir = output.path
    staged = output_dir / STAGING / "output"
    trainer.refuse_ruined_weights()
    try:
        if trainer.args.should_save:
            clean_up(output_dir)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staged), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            output.place(staged)
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
