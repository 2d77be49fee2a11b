"""Waiting for what another process does: until it has happened, never for a time that should be enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

PATIENCE_S = 900.0
"""Ends what hangs. Nothing that a test waits for takes as long, however busy the machine is."""


def wait_until(happened: Callable[[], object], what: str = "it") -> None:
    """Return as soon as a condition holds.

    Raises:
        AssertionError: when it does not come to hold.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(pids: Iterable[int]) -> None:
    """Return when none of these processes, which would never end by themselves, runs any more."""
    for pid in pids:
        wait_until(lambda pid=pid: not is_alive(pid), f"the end of process {pid}")
