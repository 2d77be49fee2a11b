"""Processes that end with the one that started them, however it ends. On Linux; elsewhere nothing happens.

``accelerate launch`` waits for a single training process and leaves it behind when it is told to stop, and no
launcher can tell anything when it is killed. So the kernel tells: by SIGTERM, after which training saves.
Imports no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, not between fork and exec
_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
_LAUNCHER_MODULES = ("accelerate.commands.", "torch.distributed.", "deepspeed.launcher.")


def end_with_parent() -> None:
    """Ask for SIGTERM when the parent dies. In the child, before or after it has become another program."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_launcher() -> None:
    """Ask for SIGTERM when the launcher dies that has started this process; a shell may go without it."""
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ and not is_launcher(_command_line(parent)):
        return
    end_with_parent()
    if os.getppid() != parent:  # it died before the kernel was asked
        signal.raise_signal(signal.SIGTERM)


def is_launcher(words: list[str]) -> bool:
    """Whether a command line is that of a program that starts training processes and waits for them."""
    return any(
        Path(word).name in _LAUNCHERS or word.startswith(_LAUNCHER_MODULES) for word in words[:4]
    )  # python, its flags, the script or -m and a module


def _command_line(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
