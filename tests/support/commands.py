"""Commands as a user starts them: in a process of their own, or in this one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from scst.config.recipes import RECIPES
from tests.support.forked import run_forked
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S


def command_of(stage: str) -> ModuleType:
    """The module in ``scst.cli`` that runs a stage."""
    return importlib.import_module(f"scst.cli.{RECIPES[stage].command.split()[0]}")


def call(stage: str, *flags: str) -> int:
    """A command with these arguments: its exit code."""
    return int(command_of(stage).main(list(flags)))


def start_warm(
    *arguments: str, cwd: Path = ROOT, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """As ``start``, for what imports torch: the libraries are imported already when the process begins."""
    return run_forked(
        arguments,
        cwd=cwd,
        environment=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=stdin,
        timeout_s=PATIENCE_S,
    )


def start(
    *arguments: str, cwd: Path = ROOT, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on this project, from any folder; what it writes is kept as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
