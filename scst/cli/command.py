"""Runs a command: parse, check, start processes or run, and turn errors into messages and exit codes.

Nothing here imports torch: help and a wrong recipe are answered at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from rewards.errors import RewardError
from scst.cli.arguments import Arguments, parse
from scst.cli.launcher import start_processes
from scst.cli.usage import help_text
from scst.config.keys import Recipe
from scst.data.visible import visible_lines
from scst.distributed.parent_process import end_with_launcher
from scst.errors import Interrupted, ScstError
from scst.training.secrets import hide_secrets

R = TypeVar("R", bound=Recipe)
LONGEST_MESSAGE = 10_000
"""Characters of an error message that are printed."""


def run_command(
    recipe_class: type[R],
    run: Callable[[Arguments[R]], object],
    *,
    usage: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command to its exit code.

    0: its outputs are complete; 2: a wrong recipe or dataset; 1: a reward or the run itself failed;
    128 + number: ended by a signal. An error that is no fault of the user is raised.

    Args:
        recipe_class: the keys of the command.
        run: does the work; called with the parsed arguments. What it returns is not used.
        usage: the docstring of the command's module, shown by ``--help``.
        argv: arguments; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    end_with_launcher()
    try:
        if "--help" in argv or "-h" in argv:
            print(help_text(recipe_class, usage or ""))
            sys.stdout.flush()
            return 0
        arguments = parse(recipe_class, argv)
        _check(arguments.recipe)
        if arguments.launch is not None and not arguments.dry_run:
            return start_processes(arguments.launch, f"scst.cli.{recipe_class.command}", arguments.remaining)
        run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # one line, not one for every process
            print(_one_message(error), file=sys.stderr)
        return error.exit_code
    except ScstError as error:
        print(f"error: {_one_message(error)}", file=sys.stderr)
        return error.exit_code
    except RewardError as error:
        print(f"error: {_one_message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("SIGINT: stopped before there was anything to save", file=sys.stderr)
        return 128 + signal.SIGINT
    except BaseException as error:
        _tell_launcher(error)
        raise
    return 0


def _one_message(error: BaseException) -> str:
    """What an error says, without secrets and control characters, and of bounded length."""
    text = visible_lines(hide_secrets(str(error)))
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE // 2]} ... {text[-1000:]}"


def _check(recipe: Recipe) -> None:
    from scst.config.checks import check_recipe  # imports numpy and the hub's client: not for --help

    check_recipe(recipe)


def _tell_launcher(error: BaseException) -> None:
    """Write the traceback to the file where torchrun looks for it.

    torchrun shows the traceback of the first process that failed, not those of the others, which fail because
    they lose it.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, SystemExit):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
