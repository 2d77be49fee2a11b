"""What command lines share: ``--config``, ``--key value`` overrides, ``--dry_run``, ``--help``, exit codes.

Nothing here imports torch: help and a wrong recipe are answered at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rewards.errors import RewardError
from scst.config.keys import default_of
from scst.config.reader import (
    build_recipe,
    from_run_record,
    read_recipe_file,
    resolved,
    training_argument_names,
)
from scst.config.recipes import RECIPES
from scst.errors import Interrupted, RecipeError, ScstError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"


@dataclass
class Arguments:
    """A parsed command line."""

    recipe: Any
    dry_run: bool = False
    plan: bool | str = False
    positional: list[str] = field(default_factory=list)


def main(
    stage: str, run: Callable[[Arguments], None], *, usage: str, argv: Sequence[str] | None = None
) -> int:
    """Parse, run, and turn errors that a user can mend into a message and an exit code.

    2: a wrong recipe or dataset; 1: a reward or the run itself failed; 128 + number: ended by a signal.

    Args:
        stage: a name in ``scst.config.recipes.RECIPES``.
        run: does the work; called with the parsed arguments.
        usage: the script's docstring, shown by ``--help``.
        argv: arguments; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--help" in argv or "-h" in argv:
            print(help_text(stage, usage))
        else:
            run(parse(stage, argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # one line, not one for every process
            print(error, file=sys.stderr)
        return error.exit_code
    except ScstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except RewardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BaseException as error:
        _tell_launcher(error)
        raise
    return 0


def _tell_launcher(error: BaseException) -> None:
    """Under torchrun, leave the traceback where the launcher looks for it: it shows that of the first process
    to fail, and not what the others say when they lose it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, SystemExit):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def parse(stage: str, argv: Sequence[str]) -> Arguments:
    """Arguments of a stage: the recipe file, overridden by flags.

    Without ``--config`` the quickstart recipe is used; `evaluate`, `caption` and `explain` start from what
    the adapter was trained with, when it tells.

    Raises:
        RecipeError: on a flag without value, an unknown key or a wrong value.
    """
    flags, positional = _split_flags(argv)
    config = flags.pop("config", None)
    dry_run = bool(flags.pop("dry_run", False))
    plan = _plan(flags.pop("plan", False), dry_run) if _is_training(stage) else False
    base = read_recipe_file(config) if config else _default_settings(stage, flags.get("adapter"))
    return Arguments(build_recipe(stage, base | flags), dry_run, plan, positional)


def _is_training(stage: str) -> bool:
    return any(f.name == "training" for f in dataclasses.fields(RECIPES[stage]))


def _plan(value: Any, dry_run: bool) -> bool | str:
    """What ``--plan`` asks for: nothing, the tables and JSON on the screen, or JSON in a file."""
    if value and dry_run:
        raise RecipeError("--plan and --dry_run exclude each other: a plan loads the model and runs steps")
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.endswith(".json") or Path(value).is_dir():
        raise RecipeError(f"--plan: expected nothing or a file to write, FILE.json; got {value!r}")
    return value


def _default_settings(stage: str, adapter: str | None) -> dict[str, Any]:
    if (
        stage in ("evaluate", "caption", "explain")
        and adapter is not None
        and (recorded := from_run_record(adapter))
    ):
        # an adapter may come from somebody else: it never says where to write
        keys = {f.name for f in dataclasses.fields(RECIPES[stage])} - {"output_dir", "output", "adapter"}
        return {name: value for name, value in recorded.items() if name in keys}
    quickstart = QUICKSTART / f"{stage}.yaml"
    return read_recipe_file(quickstart) if quickstart.is_file() else {}


def _split_flags(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``--key value``, ``--key=value``, a bare ``--key`` (true), a repeated one (list); else positional."""
    flags: dict[str, Any] = {}
    positional: list[str] = []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            positional.append(argument)
            continue
        name, separator, value = argument[2:].partition("=")
        if not separator and name != "dry_run" and remaining and not remaining[0].startswith("--"):
            value, separator = remaining.pop(0), "="
        value = _value(name, value) if separator else True
        flags[name] = [*_listed(flags[name]), *_listed(value)] if name in flags else value
    return flags, positional


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(name: str, text: str) -> Any:
    if text == "-":  # standard input; to YAML an empty list entry
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: cannot read the value {text!r}: {error}") from error


def refuse_positional(arguments: Arguments) -> None:
    """Scripts that take keys only refuse anything else: a forgotten ``--`` must not be passed over.

    Raises:
        RecipeError: naming the first stray argument.
    """
    if arguments.positional:
        raise RecipeError(f"unexpected argument {arguments.positional[0]!r}: keys are given as --key value")


def answer_dry_run(arguments: Arguments) -> bool:
    """On ``--dry_run`` check the dataset's layout and print it with the recipe; True when that was all."""
    if arguments.dry_run:
        from scst.data.sources import check_layout

        print_dry_run(arguments.recipe, check_layout(arguments.recipe.dataset))
    return arguments.dry_run


def help_text(stage: str, usage: str) -> str:
    """What ``--help`` prints: the script's docstring and every key with its default."""
    lines = [usage.strip(), "", "flags:"]
    lines += ["  --config RECIPE.yaml   flat `key: value` lines; every key can be overridden as --key value;"]
    lines += ["                         `extends: OTHER.yaml` begins with the keys of another recipe"]
    lines += ["  --dry_run              check recipe and dataset, print the resolved recipe, load no model"]
    if _is_training(stage):
        lines += [
            "  --plan [FILE.json]     run a few steps, project the time of the whole run, write nothing else"
        ]
    lines += ["", "keys:"]
    for f in dataclasses.fields(RECIPES[stage]):
        if f.name == "training":
            continue
        default = default_of(RECIPES[stage], f.name)
        choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        lines.append(f"  {f.name:24} {f.metadata['help']}{choices} [{default}]")
    if _is_training(stage):
        lines += ["", "and every name of transformers.TrainingArguments:"]
        lines.append("  " + ", ".join(sorted(training_argument_names())))
    return "\n".join(lines)


def print_dry_run(recipe: Any, layout: dict[str, Any]) -> None:
    """The resolved recipe as YAML, with what was found in the dataset as comments."""
    for name, value in layout.items():
        print(f"# dataset {name}: {value}")
    print(yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True), end="")
