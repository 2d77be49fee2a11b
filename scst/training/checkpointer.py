"""Writes and reads checkpoints that hold all that a resumed run needs, and never loses the last good one.

``transformers.Trainer`` writes its own files: adapter, optimizer, scheduler, scaler, the random number
generators of every process, its state. Every *part* that was registered with the checkpointer adds its
``state_dict()``, in one file per process. :mod:`scst.training.run_folder.checkpoints` then publishes the
folder.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rewards.errors import RewardError
from scst.data.files import STAGING, clean_up, give_umask
from scst.data.visible import visible
from scst.distributed.processes import first_message
from scst.errors import RecipeError
from scst.training.run_folder import checkpoints
from scst.training.run_folder.manifest import verify, write_manifest
from scst.training.unreadable_data import innermost_line

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a trainer whose state, plain values and tensors, is saved with every checkpoint."""

    def state_dict(self) -> Any:
        """The state that a resumed run needs."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from :meth:`state_dict`."""


@dataclass(frozen=True)
class StepEnd:
    """State at the end of a step that the next step changes as soon as it begins.

    Attributes:
        generators: states of the global random number generators, by library.
        parts: state by name of the parts registered with ``rewinds``.
    """

    generators: dict[str, Any]
    parts: dict[str, Any]


class Checkpointer:
    """Saves and restores a run.

    When a checkpoint cannot be written (full or read-only disk), a warning says so, the run continues, and
    tries again when the next checkpoint is due. Under DeepSpeed and FSDP the error ends the run instead:
    writing is collective there, and the other processes would wait for the one that failed.

    Args:
        output_dir: output folder of the run.
        process_index: index of this process; process 0 publishes.
        limit: number of checkpoints to keep; None: all.
        can_fail: False when a failure to write must end the run.

    Attributes:
        failed_saves: number of checkpoints that could not be written.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        process_index: int = 0,
        limit: int | None = None,
        can_fail: bool = True,
    ):
        self.output_dir = Path(output_dir)
        self.process_index = process_index
        self.limit = limit
        self.can_fail = can_fail
        self.failed_saves = 0
        self._parts: dict[str, Stateful] = {}
        self._rewound: set[str] = set()
        self._step_end: StepEnd | None = None

    def register(self, name: str, part: Stateful, *, rewinds: bool = False) -> None:
        """Save the state of a part with every checkpoint.

        Args:
            name: key of the state in the file; unique.
            part: the part.
            rewinds: True when the state changes within a step. A checkpoint that is written because a step
                failed must hold the state from before that step. ``state_dict`` is then called after every
                step, so it must be cheap.
        """
        self._parts[name] = part
        if rewinds:
            self._rewound.add(name)

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.output_dir / f"{checkpoints.PREFIX}{step}"

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is there. Collective."""
        is_there = verify(self.folder(step), sums=False) is None
        first_message(None)  # a barrier: every process has looked before one of them begins to write
        return is_there

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        ended: bool = False,
        protected: Collection[int] = (),
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint, publish it and delete the oldest. Collective.

        Args:
            step: number of optimizer steps so far.
            write: writes the library's own files into a folder; called on every process.
            ended: whether the run has ended before its last step (early stopping, an alarm).
            protected: steps whose checkpoints are never deleted: the best one.
            parts: name -> state to save instead of the part's present state.
        """
        staged = self.output_dir / STAGING / self.folder(step).name

        def write_parts() -> None:
            states = {name: part.state_dict() for name, part in self._parts.items()} | dict(parts or {})
            torch.save(states, staged / _parts_file(self.process_index))

        def publish() -> None:
            give_umask(staged)
            write_manifest(staged, step=step, ended=ended)
            checkpoints.publish(staged, self.folder(step))
            checkpoints.prune(self.output_dir, self.limit, protected)
            clean_up(self.output_dir)

        # every stage is attempted on all processes or on none: they agree on a fault before the next begins
        fault = (
            self._attempt(lambda: self._on_main(self._empty_staging))
            or self._attempt(lambda: write(staged))
            or self._attempt(write_parts)
            or self._attempt(lambda: self._on_main(publish))
        )
        if fault:
            self._report_unsaved(self.folder(step), fault)

    def restore(self, checkpoint: str | Path) -> None:
        """Load the state of every part from a checkpoint.

        Raises:
            RecipeError: when the checkpoint lacks a part of this run, or a reward refuses its state.
        """
        own = Path(checkpoint) / _parts_file(self.process_index)
        # a checkpoint of fewer processes has no file for this one; that of process 0 holds what they share
        path = own if own.is_file() else Path(checkpoint) / _parts_file(0)
        states = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            if name not in states:
                raise RecipeError(
                    f"resume: {checkpoint} holds no state of {name!r}: it was written with other settings; "
                    "use those, or begin a new run in another output_dir"
                )
            try:
                part.load_state_dict(states[name])
            except RewardError as error:
                raise RecipeError(f"resume: {error}") from error

    def end_step(self) -> None:
        """Record the state at the end of an optimizer step, for :meth:`save_last_step`."""
        rewound = {name: self._parts[name].state_dict() for name in self._rewound}
        self._step_end = StepEnd(_generator_states(), rewound)

    def save_last_step(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        ended: bool = False,
        protected: Collection[int] = (),
    ) -> bool:
        """Save a checkpoint of the last completed step while a later step fails. Collective.

        It equals the checkpoint that the end of that step would have written: the random number generators
        are set back first. Nothing is saved when that checkpoint exists already, or no step was completed.

        Args:
            step, write, ended, protected: as of :meth:`save`.

        Returns:
            Whether a checkpoint was written.
        """
        if self.has(step) or self._step_end is None:
            return False
        _restore_generators(self._step_end.generators)
        self.save(step, write, ended=ended, protected=protected, parts=self._step_end.parts)
        return True

    def _empty_staging(self) -> None:
        clean_up(self.output_dir)
        (self.output_dir / STAGING).mkdir()

    def _attempt(self, work: Callable[[], None]) -> str | None:
        """Call ``work``; returns the first write failure of any process, or None. Collective."""
        fault = None
        try:
            work()
        except Exception as error:
            if not self.can_fail or not checkpoints.is_write_failure(error):
                raise
            fault = innermost_line(error)
        return first_message(fault)

    def _on_main(self, work: Callable[[], None]) -> None:
        if self.process_index == 0:
            work()

    def _report_unsaved(self, folder: Path, fault: str) -> None:
        self.failed_saves += 1
        if self.process_index != 0:
            return
        clean_up(self.output_dir)  # frees the disk space of the part that was written
        complete = (p for _, p in checkpoints.numbered_checkpoints(self.output_dir))
        newest = next((p.name for p in complete if verify(p, sums=False) is None), "none")
        logger.warning(
            "%s could not be written to %s: %s. The run goes on and tries again at the next checkpoint; "
            "newest complete one: %s",
            *(visible(str(part)) for part in (folder.name, self.output_dir, fault, newest)),
        )


def _parts_file(process_index: int) -> str:
    return f"parts-{process_index}.pt"


def _generator_states() -> dict[str, Any]:
    """States of the global random number generators by library. Reward functions may draw from them."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
