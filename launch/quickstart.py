"""Runs `scst quickstart`; the help is in scst/cli/quickstart.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`
from scst.cli.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
