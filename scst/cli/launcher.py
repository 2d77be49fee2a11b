"""``--accelerate_config`` and ``--num_processes``: a command in the processes of accelerate's launcher."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scst.config.packaged import find_accelerate_config
from scst.errors import DataError, RecipeError
from scst.files.yaml_reader import read_yaml

LAUNCHED_STAGES = ("sft", "scst", "evaluate", "caption")
"""Stages whose work can be divided among processes."""
SEVERAL_PROCESSES = "ddp"
"""The packaged configuration of ``--num_processes`` alone."""


@dataclass
class Launch:
    """Which processes to start.

    Attributes:
        config: an accelerate configuration.
        num_processes: in place of the configuration's; None keeps it.
    """

    config: Path
    num_processes: int | None = None


def take_launch_flags(stage: str, argv: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """The flags that start processes, and the arguments without them; None for work in this process.

    Raises:
        RecipeError: on a value that cannot be used.
    """
    if stage not in LAUNCHED_STAGES:
        return None, list(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes", type=int)
    try:
        flags, remaining = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise RecipeError(str(error).removeprefix("argument ")) from error
    config, count = flags.accelerate_config, flags.num_processes
    for name, value in vars(flags).items():
        if value in ("", []):  # argparse makes a list of `--num_processes=--`
            raise RecipeError(f"--{name}: expected one argument")
    if count is not None and count < 1:
        raise RecipeError(f"--num_processes: expected 1 or more, got {count}")
    if config is None and count in (None, 1):
        return None, remaining
    launch = Launch(find_accelerate_config(config or SEVERAL_PROCESSES), count)
    _check_count(launch)
    return launch, remaining


def _check_count(launch: Launch) -> None:
    """Refuse several processes where accelerate would start one without saying so."""
    try:
        content = read_yaml(launch.config)
    except DataError as error:
        raise RecipeError(f"--accelerate_config: {error}") from error
    kind = str(content.get("distributed_type", "NO")) if isinstance(content, dict) else "NO"
    if kind in ("NO", "False") and (launch.num_processes or 1) > 1:  # YAML reads a bare NO as false
        raise RecipeError(
            f"--num_processes: {str(launch.config)!r} describes one process; for {launch.num_processes} give "
            "--accelerate_config ddp, zero2, zero3 or fsdp2 (on GPUs) or cpu-2"
        )


def start_processes(launch: Launch, module: str, arguments: Sequence[str]) -> int:
    """Run ``python -m module arguments`` in the processes of a launch; returns the exit code.

    One process replaces this one, so that signals and its exit code are its own. Several are children of
    torchrun's agent in this process, which hands SIGTERM, SIGINT and SIGHUP on to them.
    """
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    flags = ["--config_file", str(launch.config)]
    if launch.num_processes is not None:
        flags += ["--num_processes", str(launch.num_processes)]
    parsed = accelerate_launch.launch_command_parser().parse_args([*flags, "-m", module, *arguments])
    # accelerate's own would wait for a child and leave it behind when SIGTERM ends the launcher
    accelerate_launch.simple_launcher = _become
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: torchrun would end with the terminal
        parsed.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    try:
        accelerate_launch.launch_command(parsed)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _become(parsed: Any) -> None:
    """Replace this process by the single one of the launch."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(parsed)
    os.execvpe(command[0], command, environment)


def _exit_code(code: int) -> int:
    """That of a shell: 128 + number for a process that a signal ended."""
    return 128 - code if code < 0 else code
