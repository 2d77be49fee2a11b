"""The project's commands in this process."""

from __future__ import annotations

import importlib
from types import ModuleType

from scst.config.recipes import RECIPES


def command_of(stage: str) -> ModuleType:
    """The module in ``scst.cli`` that runs a stage."""
    return importlib.import_module(f"scst.cli.{RECIPES[stage].command.split()[0]}")


def call(stage: str, *flags: str) -> int:
    """A command with these arguments: its exit code."""
    return int(command_of(stage).main(list(flags)))
