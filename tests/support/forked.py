"""Python commands in processes of their own, forked from one that has imported the libraries already.

A process that imports torch and transformers needs ten seconds for it. Those forked here have a command line,
folder, environment, streams, signals and an exit code of their own, as ``python ARGUMENTS`` has; only the
imports are behind them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.preloaded import SERVER

OURS = ("scst", "rewards", "launch", "benchmarks", "tests")


def run_forked(
    arguments: Sequence[str], *, cwd: Path, environment: dict[str, str], stdin: str | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([sys.executable, *arguments], ...)`` answers, without the wait for the imports.

    Args:
        arguments: ``-c CODE``, ``-m MODULE`` or a script, and what follows it.
        cwd: the folder it runs in.
        environment: all of it; ``PYTHONPATH`` is obeyed.
        stdin: text for its standard input.
        timeout_s: after which it is killed.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with tempfile.TemporaryDirectory(prefix="scst-forked-") as name:
        streams = Path(name)
        for number, text in (("0", stdin or ""), ("1", ""), ("2", "")):
            (streams / number).write_text(text, encoding="utf-8")
        process = start_forked(arguments, cwd=cwd, environment=environment, streams=streams)
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout_s)
        written = [(streams / number).read_text(encoding="utf-8") for number in ("1", "2")]
    return subprocess.CompletedProcess([*arguments], process.exitcode or 0, *written)


def start_forked(
    arguments: Sequence[str], *, cwd: Path, environment: dict[str, str], streams: Path
) -> BaseProcess:
    """Start it; its standard streams are the files ``0``, ``1`` and ``2`` of a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVER])
    process = context.Process(target=_become, args=([*arguments], str(cwd), environment, str(streams)))
    process.start()
    return process


def _become(arguments: list[str], cwd: str, environment: dict[str, str], streams: str) -> None:
    """Turn this process into ``python ARGUMENTS``; does not return."""
    for number in range(3):
        name = os.path.join(streams, str(number))
        file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (for the process' whole life)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    code = _run(arguments)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(arguments: list[str]) -> int:
    """The exit code that Python would end with."""
    first, *rest = arguments
    asked = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    beside = str(Path(first).resolve().parent) if not first.startswith("-") else os.getcwd()
    of_python = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
    sys.path[:] = [beside, *asked, *of_python]
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]  # the command takes them from its own import path: of a wheel, say
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
