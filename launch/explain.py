"""Runs `scst explain`; the help is in scst/cli/explain.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`
from scst.cli.explain import main

if __name__ == "__main__":
    sys.exit(main())
