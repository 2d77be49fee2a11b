"""Train and evaluate many models, prompts and decodings, and compare them.

    scst matrix --config experiments/prompts-matrix
    scst matrix --config ... --dry_run           (every run with its keys; loads no model)
    scst matrix --config ... --seeds 1,2,3
    python launch/matrix.py --config recipes/experiments/prompts-matrix.yaml      (from a clone)

Repeat the command to continue after a kill, a failure or a changed key: complete runs are not run again.
Leaves matrix.html, matrix.md, matrix.csv, matrix.json, figures/ and a folder per run in output_dir. How to
write a matrix: docs/matrix.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.config.recipes import MatrixRecipe


def run(arguments: Arguments[MatrixRecipe]) -> None:
    """Check the whole matrix, then run it."""
    refuse_positional(arguments)
    from scst.config import build_matrix

    plan = build_matrix.checked_plan(arguments.recipe)
    if arguments.dry_run:
        build_matrix.print_plan(plan)
    else:
        build_matrix.run_matrix(arguments.recipe, plan)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(MatrixRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
