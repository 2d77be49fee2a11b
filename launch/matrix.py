"""Train and evaluate many models, prompts and decodings, and compare them.

    python launch/matrix.py --config recipes/matrix/prompts-matrix.yaml
    python launch/matrix.py --config ... --dry_run           (every run with its keys; loads no model)
    python launch/matrix.py --config ... --seeds 1,2,3

Repeat the command to go on after a kill, a failure or a changed key: complete runs are not run again. Leaves
matrix.html, matrix.md, matrix.csv, matrix.json, figures/ and a folder per run in output_dir. How to write a
matrix: docs/matrix.md.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, main, refuse_positional


def run(arguments: Arguments) -> None:
    """Check the whole matrix, then run it."""
    refuse_positional(arguments)
    from scst.config import build_matrix

    plan = build_matrix.checked_plan(arguments.recipe)
    if arguments.dry_run:
        build_matrix.print_plan(plan)
    else:
        build_matrix.run_matrix(arguments.recipe, plan)


if __name__ == "__main__":
    sys.exit(main("matrix", run, usage=__doc__))
