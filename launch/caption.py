"""Runs `scst caption`; the help is in scst/cli/caption.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`
from scst.cli.caption import main

if __name__ == "__main__":
    sys.exit(main())
