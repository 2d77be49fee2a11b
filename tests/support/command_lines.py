"""Commands as a user starts them: in a process of their own, or in this one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S


def start(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run Python in the project's root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S
    )


def call(script: str, *flags: str) -> int:
    """A launch script in this process: its exit code."""
    module = importlib.import_module(f"launch.{script}")
    from scst.cli.arguments import main

    return main(script, module.run, usage=module.__doc__, argv=list(flags))
