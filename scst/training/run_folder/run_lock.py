"""One run per output folder: a lock that names its holder, and that a dead process does not keep.

The kernel's record locks decide: they end with their process, however it ends, and children do not inherit
them. What the file says (host, process, since when) is for messages, and for file systems that do not share
such locks between hosts: there a holder on another host counts as alive while it touches the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from scst.errors import RecipeError

LOCK_NAME = ".run.lock"
SIGN_OF_LIFE_S = 15.0
"""Seconds between two touches of the lock by its holder."""
SILENCE_S = 60.0
"""A holder on another host that has been silent for so many seconds is dead."""

_held: set[Path] = set()
"""Locks of this process: record locks do not keep a process out of what it holds itself."""
_held_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, the lock of a folder.

    Attributes:
        host: name of the computer.
        process: number of the process.
        process_started: when that process began, in seconds since 1970: numbers are given out again.
        since: when it took the lock, as text.
    """

    host: str
    process: int
    process_started: float
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """The holder that this process would be."""
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), os.getpid(), started, time.strftime("%Y-%m-%d %H:%M:%S %z"))

    @property
    def is_on_this_host(self) -> bool:
        """Whether it runs, or ran, on this computer."""
        return self.host == socket.gethostname()

    @property
    def runs_here(self) -> bool:
        """Whether the very process lives on this computer; another process of its number does not count."""
        if not self.is_on_this_host:
            return False
        try:
            started = psutil.Process(self.process).create_time()
        except psutil.Error:
            return False
        return abs(started - self.process_started) < 2.0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def run_lock(folder: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock of a folder inside the block.

    Args:
        folder: the output folder; it exists.
        say: called with a line of text when the lock of a dead process is taken over.

    Raises:
        RecipeError: another run holds it; the message names host, process and time.
        OSError: the folder cannot be written.
    """
    path = folder.resolve() / LOCK_NAME
    with _once_in_this_process(path):
        descriptor = _locked_file(path)
        try:
            _check_last_holder(path, descriptor, say)
            _write(descriptor, Holder.this_process())
            try:
                with _signs_of_life(descriptor):
                    yield
            finally:
                if _is_file_of(descriptor, path):
                    with contextlib.suppress(OSError):  # a disk that became read-only
                        path.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def _once_in_this_process(path: Path) -> Iterator[None]:
    with _held_guard:
        if path in _held:
            raise RecipeError(_refusal(path, "this very process"))
        _held.add(path)
    try:
        yield
    finally:
        with _held_guard:
            _held.discard(path)


def _locked_file(path: Path) -> int:
    """Descriptor of the lock file, locked.

    Raises:
        RecipeError: another process has locked it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _read(descriptor)
            os.close(descriptor)
            raise RecipeError(_refusal(path, holder or "a process that has just begun")) from None
        except OSError:
            pass  # a file system without locks: what the file says has to do
        if _is_file_of(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder has ended, and removed it, since it was opened


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Whether a descriptor is of the file that has the path now."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


def _check_last_holder(path: Path, descriptor: int, say: Callable[[str], None]) -> None:
    """Refuse a lock whose holder is alive although the kernel gave it to us; say that a dead one had it."""
    holder = _read(descriptor)
    if holder is None:
        return
    if holder.runs_here or (not holder.is_on_this_host and _gives_sign_of_life(path, descriptor)):
        raise RecipeError(_refusal(path, holder))
    say(f"the run of {holder} ended without a word; its lock is taken over")


def _gives_sign_of_life(path: Path, descriptor: int) -> bool:
    """Whether a holder on another host still touches the lock; waits until that is certain."""
    touched = os.fstat(descriptor).st_mtime
    while True:
        with tempfile.TemporaryFile(dir=path.parent) as probe:  # the file system's clock, not ours
            silent = os.fstat(probe.fileno()).st_mtime - touched
        if silent > SILENCE_S:
            return False
        time.sleep(min(1.0, SILENCE_S / 10))
        if os.fstat(descriptor).st_mtime != touched:
            return True


@contextmanager
def _signs_of_life(descriptor: int) -> Iterator[None]:
    """Touch the lock at intervals inside the block."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(SIGN_OF_LIFE_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=touch, daemon=True, name="run lock")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _read(descriptor: int) -> Holder | None:
    """What the file says; None when it is empty or says nothing sensible."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (OSError, ValueError, TypeError):
        return None


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _refusal(path: Path, holder: Holder | str) -> str:
    return (
        f"output_dir: another run is at work in {str(path.parent)!r}: {holder}; wait for it, stop it, or "
        "give another folder"
    )
