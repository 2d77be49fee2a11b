"""Saving for both trainers: complete or absent, with all that a resumed run needs, and no last good one lost.

``transformers.Trainer`` writes what it always writes - adapter, optimizer, scheduler, scaler, the generators
of every process, its state - into a folder aside. Callbacks with a method ``save_beside(folder)`` add theirs,
and :mod:`scst.training.checkpoints` seals and publishes it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer import TRAINER_STATE_NAME

from scst.distributed.processes import message_of_all_processes
from scst.errors import DataError
from scst.training import checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepEnd:
    """What a checkpoint of the last completed step holds and the beginning of the next one changes."""

    generators: dict[str, Any]
    other: dict[str, Any] = field(default_factory=dict)


class CheckpointMixin:
    """Checkpoints of a ``transformers.Trainer``; goes before it in the bases.

    A checkpoint that cannot be written (full or read-only disk) is reported and given up; the run goes on
    with those it has, and tries again when the next one is due. Not so under DeepSpeed and FSDP, where the
    processes meet while they write: there the error ends the run.
    """

    failed_saves = 0
    _aside: str | None = None
    _step_end: StepEnd | None = None

    def _get_output_dir(self, trial: Any = None) -> str:
        return self._aside or super()._get_output_dir(trial=trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any = None) -> None:
        """Write, seal, publish and prune; a failure to write is reported, on all processes alike."""
        folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.global_step}"
        aside = folder.parent / checkpoints.ASIDE / folder.name
        fault = (
            self._attempt(lambda: self._on_main(lambda: _empty_folder(aside.parent)))
            or self._attempt(lambda: self._write(model, trial, aside))
            or self._attempt(lambda: self._on_main(lambda: self._finish(aside, folder)))
        )
        if fault:
            self._report_unsaved(folder, fault)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        with self._nothing_pruned():
            return super()._finalize_training(*args, **kwargs)

    @contextmanager
    def _nothing_pruned(self) -> Iterator[int | None]:
        """The library prunes by age alone: the last good checkpoint, too, when a damaged one is newer."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield limit
        finally:
            self.args.save_total_limit = limit

    def _attempt(self, work: Callable[[], None]) -> str | None:
        """Do it; the first failure to write of any process, when there is one. All processes meet here."""
        fault = None
        try:
            work()
        except Exception as error:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled or not checkpoints.is_write_failure(error):
                raise
            fault = _first_line(error)
        return message_of_all_processes(self.accelerator, fault)

    def _on_main(self, work: Callable[[], None]) -> None:
        if self.args.should_save:
            work()

    def _write(self, model: torch.nn.Module, trial: Any, aside: Path) -> None:
        """What the library writes. It would look for the best checkpoint in the folder that it writes to."""
        best_step = self.state.best_global_step
        if best_step:
            best = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{best_step}"
            if best_step == self.state.global_step or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self._aside, self.state.best_global_step = str(aside.parent), None
        try:
            with self._nothing_pruned():
                super()._save_checkpoint(model, trial)
        finally:
            self._aside, self.state.best_global_step = None, best_step
        self.save_own(aside)

    def _finish(self, aside: Path, folder: Path) -> None:
        self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "save_beside"):
                callback.save_beside(aside)
        # by its own rules: early stopping, an alarm; not by a signal, nor by max_steps, which may be raised
        ended = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        checkpoints.seal(aside, step=self.state.global_step, ended=ended, values=self.values_to_save())
        checkpoints.publish(aside, folder)
        checkpoints.prune(folder.parent, self.args.save_total_limit, {self.state.best_global_step or 0})
        checkpoints.sweep(folder.parent)

    def _report_unsaved(self, folder: Path, fault: str) -> None:
        self.failed_saves += 1
        if not self.args.should_save:
            return
        checkpoints.sweep(folder.parent)  # what was written fills the disk
        complete = (p for _, p in checkpoints.numbered_checkpoints(folder.parent))
        newest = next((p.name for p in complete if checkpoints.fault_of(p, sums=False) is None), "none")
        logger.warning(
            "%s could not be written to %s: %s. The run goes on and tries again at the next checkpoint; "
            "newest complete one: %s",
            *(folder.name, folder.parent, fault, newest),
        )

    # what the library does not know of

    def values_to_save(self) -> dict[str, Any]:
        """Plain values that go into the seal of a checkpoint."""
        return {}

    def restore_values(self, values: dict[str, Any]) -> None:
        """Back to :meth:`values_to_save`, in a resumed run."""

    def save_own(self, folder: Path) -> None:
        """Files of this process, beside those of the library."""

    def load_own(self, folder: Path) -> None:
        """Back to :meth:`save_own`, in a resumed run."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.restore_values(checkpoints.read_seal(checkpoint)["values"])
            self.load_own(Path(checkpoint))

    # the last completed step, for runs that stop in the middle of the next one

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The end of an optimizer step: remember what a checkpoint written here holds."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._step_end = StepEnd(_generator_states(), self._other_state())

    def _other_state(self) -> dict[str, Any]:
        """What else changes before a step is over."""
        return {}

    def _restore_other_state(self, state: dict[str, Any]) -> None:
        """Back to :meth:`_other_state`."""

    def _save_before_stopping(self) -> None:
        """A checkpoint of the last completed optimizer step, as if it had been written at its end.

        Gradients of a step that was not completed are dropped. The own state of rewards (``save_state``) is
        saved as the failing call left it. Nothing is saved where the checkpoint exists, or no step was made.
        """
        folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.global_step}"
        is_saved = checkpoints.fault_of(folder, sums=False) is None
        self.accelerator.wait_for_everyone()  # before one of them begins to write
        if self._step_end is not None and not is_saved:
            _restore_generators(self._step_end.generators)
            self._restore_other_state(self._step_end.other)
            self._save_checkpoint(self.model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)  # bars and trackers close

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of a step.

        Raises:
            DataError: on all processes when a file cannot be read any more, after a checkpoint.
        """
        batches, fault = [], None
        try:
            for _ in range(num_batches):
                batches.append(next(epoch_iterator))
        except StopIteration:
            pass
        except OSError as error:
            fault = _first_line(error)
        fault = message_of_all_processes(self.accelerator, fault)
        if fault:
            self._save_before_stopping()
            raise DataError(
                f"the data of step {self.state.global_step + 1} cannot be read any more: {fault}. Put the "
                f"dataset back and go on with --resume true (step {self.state.global_step} is saved)"
            )
        return super().get_batch_samples(iter(batches), num_batches, device)


def _empty_folder(folder: Path) -> None:
    checkpoints.sweep(folder.parent)
    folder.mkdir()


def _first_line(error: BaseException) -> str:
    """The innermost file error says most; what ``torch.save`` makes of it spans lines."""
    seen, named = error, error
    while seen is not None:
        named = seen if isinstance(seen, OSError) else named
        seen = seen.__cause__ or seen.__context__
    text = str(named).strip().splitlines()
    return text[0] if text else type(named).__name__


def _generator_states() -> dict[str, Any]:
    """States of the global random number generators, which rewards may draw from."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
