"""Exchanges flags, messages and numbers between processes, so that they continue or stop together.

All functions are collective where there are several processes: each must call them equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, reduce

T = TypeVar("T")


def any_process(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is true in any process."""
    state = PartialState()
    if state.num_processes == 1:
        return flags
    mine = torch.tensor([float(flag) for flag in flags], device=state.device)
    return tuple(reduce(mine, reduction="sum").bool().tolist())


def first_message(message: str | None) -> str | None:
    """The message of this process, else that of the first process with one; None when no process has one."""
    (is_there_one,) = any_process(message is not None)
    if message is not None or not is_there_one:
        # collective: a process with a message of its own must take part in the gather below too
        if PartialState().num_processes > 1 and is_there_one:
            gather_object([message])
        return message
    messages = gather_object([message])
    process = next(i for i, text in enumerate(messages) if text is not None)
    return f"{messages[process]} (in process {process})"


def from_main_process(value: T) -> T:
    """The value that the main process passes, on every process."""
    if PartialState().num_processes == 1:
        return value
    (received,) = broadcast_object_list([value])
    return received


def gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """The numbers of every process, in the order of processes; all must pass equally many."""
    state = PartialState()
    if state.num_processes == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, dtype=torch.float64, device=state.device)
    return gather(mine).view(-1, len(numbers)).tolist()
