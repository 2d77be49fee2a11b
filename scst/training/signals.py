"""Checkpoints by the clock, and a clean end of training after SIGTERM, SIGINT or SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scst.distributed.processes import any_process

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS_UNDER_LAUNCHER = 25.0
"""A process under torchrun exits this long after it was told to: torchrun sends SIGKILL after 30 s."""


class StopSignals:
    """Records the first of :data:`SIGNALS` instead of ending the process. A second SIGINT ends it at once.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._owner = os.getpid()

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Handle the signals inside the block; restore the previous handlers afterwards. Main thread only.

        SIGHUP stays ignored where it is: under ``nohup`` training goes on when the terminal closes.
        """
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            with _leaving_with_launcher():
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked child: it inherits the handler, but must end when told
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if number == self.received == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.received is None:
            self.received = number
            again = "; again to leave at once" if number == signal.SIGINT else ""
            text = f"\n{signal.Signals(number).name}: saving at the end of this step{again}\n"
            os.write(2, text.encode())  # print is not reentrant, and so not safe in a signal handler


class SaveAndStop(TrainerCallback):
    """Requests checkpoints by the clock, and after a signal a last checkpoint and the end of training.

    Checkpoints are written at the end of an optimizer step. After the last step of an epoch they wait for the
    evaluation at the end of the epoch, so that they hold its result and a resumed run begins with the next
    epoch. All processes decide together.

    Args:
        signals: records the signals of this process.
        save_minutes: wall-clock minutes between checkpoints; 0: none by the clock.
        clock: returns the time in seconds.

    Attributes:
        interrupted_by: the signal that ended training early, or None.
    """

    def __init__(
        self,
        signals: StopSignals,
        save_minutes: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.signals, self.clock = signals, clock
        self.seconds = save_minutes * 60
        self.interrupted_by: int | None = None
        self._saved_step: int | None = None
        self._epoch_is_over = False
        self._saved_at = clock()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_at = self.clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._epoch_is_over = False
        told = bool(self.signals.received)
        told, due = any_process(told, self._is_due(state))
        if told and not control.should_training_stop:
            self.interrupted_by = self.signals.received or signal.SIGTERM  # another process received it
            # not should_training_stop: the checkpoint would then record that the run has ended
            control.should_epoch_stop = True
        if due and not _ends_epoch(state):
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop:
            self.interrupted_by = None  # early stopping or an alarm has ended training in this very step
        self._epoch_is_over = True
        if self.interrupted_by:
            if not _ends_epoch(state):
                control.should_evaluate = control.should_log = False
            control.should_save = control.should_evaluate or self._saved_step != state.global_step
            control.should_training_stop = not control.should_save
        elif not control.should_save:
            (control.should_save,) = any_process(self._is_due(state))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step, self._saved_at = state.global_step, self.clock()
        if control.should_training_stop:
            self.interrupted_by = None
        elif self.interrupted_by and self._epoch_is_over:
            control.should_training_stop = True

    def _is_due(self, state: TrainerState) -> bool:
        return state.is_world_process_zero and 0 < self.seconds <= self.clock() - self._saved_at


def _ends_epoch(state: TrainerState) -> bool:
    epoch = state.epoch or 0.0
    return abs(epoch - round(epoch)) < 1e-6


@contextmanager
def _leaving_with_launcher() -> Iterator[None]:
    """Under torchrun, exit in time after a signal even when the main thread is blocked.

    torchrun sends SIGTERM to all processes when one of them dies. The others may be waiting for the dead one
    in a collective operation on the GPU, where Python runs no signal handlers. So a thread waits for the
    signal on a pipe (``signal.set_wakeup_fd``).
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)  # set_wakeup_fd requires it
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_leave_when_told, args=(ours, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(theirs)  # ends the thread


def _leave_when_told(pipe: int, over: threading.Event) -> None:
    """Wait for signal numbers on a pipe; after one that stops exit, unless ``over`` is set in time."""
    while numbers := os.read(pipe, 1):
        if numbers[0] in SIGNALS and not over.wait(SECONDS_UNDER_LAUNCHER):
            os._exit(128 + numbers[0])
