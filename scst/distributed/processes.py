"""What the processes of one run tell each other, so that they go on or stop together."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object


def flags_of_all_processes(accelerator: Any, *flags: bool) -> tuple[bool, ...]:
    """Each flag, true when it is in any process. Collective where there are several."""
    if accelerator.num_processes == 1:
        return flags
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return tuple(accelerator.reduce(mine, reduction="sum").bool().tolist())


def message_of_all_processes(accelerator: Any, message: str | None) -> str | None:
    """This process' message, or that of the first process that has one; None when nobody has. Collective."""
    (any_message,) = flags_of_all_processes(accelerator, message is not None)
    if accelerator.num_processes == 1 or not any_message:
        return message
    messages = gather_object([message])
    process = next(i for i, text in enumerate(messages) if text is not None)
    return message if message is not None else f"{messages[process]} (in process {process})"
