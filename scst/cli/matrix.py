"""Train and evaluate many models, prompts and decodings, and compare them.

    scst matrix --config experiments/prompts-matrix
    scst matrix --config ... --dry_run           (every run with its keys; loads no model)
    scst matrix --config ... --seeds 1,2,3
    scst matrix --config ... --any_launcher      (the recipe's launcher may be any program)
    python launch/matrix.py --config recipes/experiments/prompts-matrix.yaml      (from a clone)

Repeat the command to continue after a kill, a failure or a changed key: complete runs are not run again.
Leaves matrix.html, matrix.md, matrix.csv, matrix.json, figures/ and a folder per run in output_dir. How to
write a matrix: docs/matrix.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.config.recipes import MatrixRecipe
from scst.experiments.launchers import ANY_LAUNCHER


def run(arguments: Arguments[MatrixRecipe], *, any_launcher: bool = False) -> None:
    """Check the whole matrix, then run it.

    Args:
        arguments: of the command line.
        any_launcher: whether the recipe's ``launcher`` may be any program.
    """
    refuse_positional(arguments)
    from scst.config import build_matrix

    plan = build_matrix.checked_plan(arguments.recipe, any_launcher=any_launcher)
    if arguments.dry_run:
        build_matrix.print_plan(plan)
    else:
        build_matrix.run_matrix(arguments.recipe, plan, any_launcher=any_launcher)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    any_launcher = ANY_LAUNCHER in argv  # not a key: a recipe cannot give this permission to itself
    argv = [argument for argument in argv if argument != ANY_LAUNCHER]
    return run_command(MatrixRecipe, partial(run, any_launcher=any_launcher), usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
