"""Which programs the ``launcher`` of a matrix may start: the recipe may come from somebody else.

A launcher stands before ``-m scst.cli.sft ...``. Python, accelerate and torchrun run other scripts as
willingly (``python other.py``, ``accelerate launch other.py``, ``torchrun --no-python rm``). Therefore their
options are listed as well: those that only say how many processes run, and where.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scst.errors import RecipeError

ANY_LAUNCHER = "--any_launcher"
"""The flag of the command line that lifts the limits; never a recipe key."""


@dataclass(frozen=True)
class _Known:
    """A launcher that is known to start nothing but the command that follows it.

    Attributes:
        command: what is started in its place, of this environment.
        values: options that take a value; those with a tuple take one of it.
        flags: options without a value.
    """

    command: tuple[str, ...]
    values: Mapping[str, tuple[str, ...] | None]
    flags: frozenset[str]


def _any_value(names: str) -> dict[str, tuple[str, ...] | None]:
    return dict.fromkeys(names.split())


_KNOWN = {
    ("python",): _Known(
        (sys.executable,),
        {"-X": ("utf8", "dev", "faulthandler", "importtime", "tracemalloc")},
        frozenset(["-u", "-B", "-O", "-OO", "-E", "-s"]),
    ),
    ("accelerate", "launch"): _Known(
        (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
        _any_value(
            "--config_file --num_processes --num_machines --machine_rank --num_cpu_threads_per_process "
            "--gpu_ids --main_process_ip --main_process_port --mixed_precision --zero_stage --max_restarts "
            "--rdzv_backend --rdzv_conf"
        ),
        frozenset(
            ["--cpu", "--multi_gpu", "--use_deepspeed", "--use_fsdp", "--quiet", "--debug", "--same_network"]
        ),
    ),
    ("torchrun",): _Known(
        (sys.executable, "-m", "torch.distributed.run"),
        _any_value(
            "--nnodes --nproc_per_node --node_rank --master_addr --master_port --local_addr --max_restarts "
            "--rdzv_backend --rdzv_endpoint --rdzv_id --rdzv_conf"
        ),
        frozenset(["--standalone"]),
    ),
}


def launcher_command(launcher: str, *, any_program: bool = False) -> list[str]:
    """What stands before ``-m`` and a module; the known launchers are those of this environment.

    Args:
        launcher: as in a recipe, e.g. ``accelerate launch --num_processes 2``; empty is ``python``.
        any_program: whether other programs and options may stand there.

    Raises:
        RecipeError: a program or option that is not known to be harmless, or quotes that do not close.
    """
    try:
        words = shlex.split(launcher) or ["python"]
    except ValueError as error:
        raise RecipeError(f"launcher: cannot be read ({error}), got {launcher!r}") from error
    for name, known in _KNOWN.items():
        if tuple(words[: len(name)]) == name:
            options = words[len(name) :]
            if not any_program:
                _refuse_other_options(launcher, options, known)
            return [*known.command, *options]
    if any_program:
        return words
    raise RecipeError(
        f"launcher: expected python, accelerate launch ... or torchrun ..., got {launcher!r}; if you trust "
        f"this recipe to start other programs, repeat the command with {ANY_LAUNCHER}"
    )


def _refuse_other_options(launcher: str, options: Sequence[str], known: _Known) -> None:
    """Refuse what is not an allowed option or its value: a script of its own, ``-c``, ``--no_python``."""
    remaining = list(options)
    while remaining:
        option = remaining.pop(0)
        name, has_value, value = option.partition("=")
        if name.startswith("--"):
            name = name.replace("-", "_").replace("__", "--", 1)  # both launchers take either spelling
        if name in known.values:
            value = value if has_value else remaining.pop(0) if remaining else ""
            choices = known.values[name]
            # a value with a hyphen in front would be the next option to the launcher's own parser
            is_fine = value and not value.startswith("-") and (choices is None or value in choices)
        else:
            is_fine = name in known.flags and not has_value
        if not is_fine:
            allowed = ", ".join(sorted({*known.values, *known.flags}))
            raise RecipeError(
                f"launcher: {option!r} in {launcher!r} may run other code; a recipe may give the options "
                f"{allowed}; if you trust it, repeat the command with {ANY_LAUNCHER}"
            )
