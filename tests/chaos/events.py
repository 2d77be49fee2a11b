"""Events of a training run that can be counted: the only places where faults are injected.

An event happens as often in a slow run as in a fast one, so that a fault planted at it happens in every run.
All hooks are set on the libraries, in the process that trains: nothing of ``scst`` knows of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}
KINDS = ("training event", "file operation")
"""Calls of modules, optimizer steps and callbacks; changes below the output folder, and every ``fsync``."""


@dataclass(frozen=True, order=True)
class Event:
    """One event of a run.

    Attributes:
        step: optimizer steps that were completed when it happened.
        index: its number among the events of its kind at that step.
    """

    step: int
    index: int


def at(callback: str, step: int, act: Callable[[], None]) -> None:
    """Act when the callbacks of an event, e.g. ``on_step_begin``, have run after so many completed steps."""
    from transformers.trainer_callback import CallbackHandler

    call_event = CallbackHandler.call_event

    def acting(self: Any, event: str, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        result = call_event(self, event, args, state, *rest, **kwargs)
        if event == callback and state.global_step == step:
            act()
        return result

    CallbackHandler.call_event = acting


def on_step(report: Callable[[int], None]) -> None:
    """Report the number of completed steps: when training begins or goes on, and after every step."""
    from transformers.trainer_callback import CallbackHandler

    call_event = CallbackHandler.call_event

    def reporting(self: Any, event: str, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        if event in ("on_train_begin", "on_step_end"):
            report(state.global_step)
        return call_event(self, event, args, state, *rest, **kwargs)

    CallbackHandler.call_event = reporting


def record(kind: str, folder: Path, file: Path) -> None:
    """Write the events of a kind to a file: one byte each, the number of completed steps."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _on_each(kind, folder, lambda event: os.write(descriptor, bytes([event.step])))


def recorded(file: Path) -> list[Event]:
    """The events that :func:`record` wrote."""
    events: list[Event] = []
    for step in file.read_bytes():
        index = events[-1].index + 1 if events and events[-1].step == step else 0
        events.append(Event(step, index))
    return events


def die_at(kind: str, folder: Path, event: Event) -> None:
    """SIGKILL to this process at an event; at the next one after it where the run has no such event."""

    def count(now: Event) -> None:
        if now >= event:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_each(kind, folder, count)


def _on_each(kind: str, folder: Path, act: Callable[[Event], Any]) -> None:
    step, index = 0, 0

    def reached(completed: int) -> None:
        nonlocal step, index
        if completed != step:
            step, index = completed, 0

    def happened() -> None:
        nonlocal index
        event = Event(step, index)
        index += 1
        act(event)

    on_step(reached)
    _hook_files(folder, happened) if kind == "file operation" else _hook_training(happened)


def _hook_files(folder: Path, happened: Callable[[], None]) -> None:
    prefix, fsync = str(folder), os.fsync

    def hook(event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(prefix):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        happened()

    def counted_fsync(descriptor: int) -> None:
        happened()
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(hook)


def _hook_training(happened: Callable[[], None]) -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from transformers.trainer_callback import CallbackHandler

    register_module_forward_pre_hook(lambda module, arguments: happened())
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: happened())
    register_optimizer_step_post_hook(lambda optimizer, args, kwargs: happened())
    call_event = CallbackHandler.call_event

    def counted(self: Any, event: str, *args: Any, **kwargs: Any) -> Any:
        happened()
        return call_event(self, event, *args, **kwargs)

    CallbackHandler.call_event = counted
