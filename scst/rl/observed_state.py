"""The trainer's state as rewards see it: up to date, and without a way to change the run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, overload

from transformers import TrainerState


class LogHistory(Sequence[dict[str, Any]]):
    """The log up to now. Entries are copies, made when they are asked for: the log may have thousands.

    Args:
        entries: the log of the trainer, to which later entries are appended.
    """

    def __init__(self, entries: Sequence[dict[str, Any]]):
        self._entries, self._length = entries, len(entries)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        numbers = range(self._length)[index]
        if isinstance(numbers, range):
            return [dict(self._entries[number]) for number in numbers]
        return dict(self._entries[numbers])


def observed_state(state: TrainerState) -> TrainerState:
    """A copy of the state at this moment; writing to it changes nothing of the run."""
    copied = copy.copy(state)
    for name, value in vars(state).items():
        setattr(copied, name, LogHistory(value) if name == "log_history" else copy.deepcopy(value))
    return copied
