"""Evaluate several recipes in one process; launch/matrix.py starts it.

    python launch/evaluations.py RECIPE.yaml RECIPE.yaml ...

What two recipes in a row have in common - the model, the images - is loaded once. Each is what
launch/evaluate.py --config RECIPE.yaml does; one that fails leaves error.txt in its output_dir.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`


def main(files: list[str]) -> int:
    """Evaluate every file; 0 when all are done, 1 when one failed, 2 without any."""
    if not files or {"--help", "-h"} & set(files):
        print(__doc__.strip(), file=sys.stdout if files else sys.stderr)
        return 0 if files else 2
    from scst.config.build_evaluate import evaluate_files
    from scst.errors import ScstError

    try:
        evaluate_files(files)
    except ScstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
