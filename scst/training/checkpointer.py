"""Writing and reading checkpoints with all that a resumed run needs, without losing the last good one.

``transformers.Trainer`` writes what it always writes - adapter, optimizer, scheduler, scaler, the random
number generators of every process, its own state. Beside it every *part* that was registered writes its
``state_dict()``, one file per process, and :mod:`scst.training.checkpoints` publishes the whole.
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
from scst.data.files import STAGING, clean_up
from scst.distributed.processes import first_message
from scst.errors import RecipeError
from scst.training import checkpoints

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part with something to save: plain values and tensors."""

    def state_dict(self) -> Any:
        """What a resumed run needs."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from :meth:`state_dict`."""


@dataclass(frozen=True)
class StepEnd:
    """What a checkpoint of the last completed step holds and the beginning of the next one changes."""

    generators: dict[str, Any]
    parts: dict[str, Any]


class Checkpointer:
    """Saves and restores a run.

    A checkpoint that cannot be written (full or read-only disk) is reported and given up; the run continues
    with those it has, and tries again when the next one is due. Not so where the processes meet while they
    write (DeepSpeed, FSDP): there the error ends the run.

    Args:
        output_dir: of the run.
        process_index: of this process; process 0 publishes.
        limit: checkpoints to keep; None: all.
        can_fail: False where a failure to write must end the run.

    Attributes:
        failed_saves: checkpoints that could not be written.
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
        """Save a part with every checkpoint, under a name.

        Args:
            name: in the file; of its own.
            part: has ``state_dict`` and ``load_state_dict``.
            rewinds: its state changes within a step, and a checkpoint written when a step fails half way must
                hold that of the step before. ``state_dict`` is then called after every step: it must be
                cheap.
        """
        self._parts[name] = part
        if rewinds:
            self._rewound.add(name)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.output_dir / f"{checkpoints.PREFIX}{step}"

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        ended: bool = False,
        protected: Collection[int] = (),
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write, publish and prune; a failure to write is reported, on all processes alike. Collective.

        Args:
            step: optimizer steps so far.
            write: writes the trainer's own files of all processes into a folder.
            ended: the run is over by its own rules (early stopping, an alarm), whatever its last step.
            protected: steps whose checkpoints stay: the best one.
            parts: states to save in place of the present ones, by name.
        """
        staged = self.output_dir / STAGING / self.folder(step).name

        def write_parts() -> None:
            states = {name: part.state_dict() for name, part in self._parts.items()} | dict(parts or {})
            torch.save(states, staged / _parts_file(self.process_index))

        def publish() -> None:
            checkpoints.write_manifest(staged, step=step, ended=ended)
            checkpoints.publish(staged, self.folder(step))
            checkpoints.prune(self.output_dir, self.limit, protected)
            clean_up(self.output_dir)

        fault = (
            self._attempt(lambda: self._on_main(self._empty_staging))
            or self._attempt(lambda: write(staged))
            or self._attempt(write_parts)
            or self._attempt(lambda: self._on_main(publish))
        )
        if fault:
            self._report_unsaved(self.folder(step), fault)

    def restore(self, checkpoint: str | Path) -> None:
        """Give every part the state that a checkpoint holds of it.

        Raises:
            RecipeError: when a part of this run is not in the checkpoint, or a reward refuses its state.
        """
        own = Path(checkpoint) / _parts_file(self.process_index)
        # written by fewer processes: what they hold alike is in the file of the first
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
        """An optimizer step is complete: remember what a checkpoint written now would hold."""
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
        """A checkpoint of the last completed step, from within a step that failed. Collective.

        It is the one that the end of that step would have written: generators are set back first. Nothing is
        saved where that checkpoint exists, or no step was made.

        Args:
            step, write, ended, protected: as of :meth:`save`.

        Returns:
            Whether a checkpoint was written.
        """
        is_saved = checkpoints.verify(self.folder(step), sums=False) is None
        first_message(None)  # every process has looked before one of them begins to write
        if self._step_end is None or is_saved:
            return False
        _restore_generators(self._step_end.generators)
        self.save(step, write, ended=ended, protected=protected, parts=self._step_end.parts)
        return True

    def _empty_staging(self) -> None:
        clean_up(self.output_dir)
        (self.output_dir / STAGING).mkdir()

    def _attempt(self, work: Callable[[], None]) -> str | None:
        """Do it; the first failure to write of any process, when there is one. All processes meet here."""
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
        clean_up(self.output_dir)  # what was written fills the disk
        complete = (p for _, p in checkpoints.numbered_checkpoints(self.output_dir))
        newest = next((p.name for p in complete if checkpoints.verify(p, sums=False) is None), "none")
        logger.warning(
            "%s could not be written to %s: %s. The run goes on and tries again at the next checkpoint; "
            "newest complete one: %s",
            *(folder.name, self.output_dir, fault, newest),
        )


def _parts_file(process_index: int) -> str:
    return f"parts-{process_index}.pt"


def innermost_line(error: BaseException) -> str:
    """The innermost file error says most; what ``torch.save`` makes of it spans lines."""
    seen: BaseException | None = error
    named = error
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
