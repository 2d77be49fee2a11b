"""Fine-tuning of image captioners in two stages: supervised, then self-critical sequence training.

scst COMMAND --help
scst --version
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from scst import __version__
from scst.data.visible import visible_lines

COMMANDS = (
    "sft",
    "rl",
    "evaluate",
    "caption",
    "score",
    "prepare",
    "matrix",
    "explain",
    "merge",
    "quickstart",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in COMMANDS:
        return int(importlib.import_module(f"scst.cli.{name}").main(arguments))
    if name == "--version":
        print(f"scst {__version__}")
    elif name in ("--help", "-h"):
        print(help_text())
    else:
        print(visible_lines(_complaint(name)), file=sys.stderr)
        return 2
    return 0


def help_text() -> str:
    """Every command with the first line of its docstring."""
    lines = [(__doc__ or "").strip(), "", "commands:"]
    for name in COMMANDS:
        usage = importlib.import_module(f"scst.cli.{name}").__doc__ or ""
        lines.append(f"  {name:12} {usage.partition(chr(10))[0]}")
    return "\n".join(lines)


def _complaint(name: str) -> str:
    if not name:
        return help_text()
    close = difflib.get_close_matches({"scst": "rl"}.get(name, name), COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
    return f"error: {name}: unknown command; {hint}"


if __name__ == "__main__":
    sys.exit(main())
