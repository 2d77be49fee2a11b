"""Evaluate several recipes in one process; the matrix starts it.

    python -m scst.cli.evaluations RECIPE.yaml RECIPE.yaml ...

The model and images that consecutive recipes share are loaded once. Each recipe is evaluated as
`scst evaluate --config RECIPE.yaml` does; one that fails leaves error.txt in its output_dir.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(files: Sequence[str]) -> int:
    """Evaluate every file; 0 when all are done, 1 when one failed, 2 without any."""
    if not files or {"--help", "-h"} & set(files):
        print((__doc__ or "").strip(), file=sys.stdout if files else sys.stderr)
        return 0 if files else 2
    from scst.config.build_evaluate import evaluate_files
    from scst.data.visible import visible_lines
    from scst.errors import ScstError

    try:
        evaluate_files(files)
    except ScstError as error:
        print(visible_lines(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
