"""Regular expressions over module names, with a time limit.

An expression such as ``(.+)+x`` takes exponential time, and Python's ``re`` cannot be interrupted from
another thread. So unknown expressions are tried out in a process of their own, on the names that the library
will match them with: what ends in time there ends in time here.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

from scst.errors import RecipeError

SECONDS = 5.0
"""Processor time that all expressions of an adapter together may take on all module names of a model."""
_LITERAL = re.compile(r"[\w.]{1,200}")
_CHILD = """
import json, re, signal, sys
expressions, names, seconds = json.load(sys.stdin)
signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # its signal ends the process, whatever it is doing
for expression in expressions:
    try:
        for form in ("%s", r"(.*\\.)?(%s)$", r"(?:^|.*?\\.)%s\\.(?P<idx>\\d+)\\."):
            compiled = re.compile(form % expression)
            for name in names:
                compiled.fullmatch(name) if form == "%s" else compiled.match(name)
    except (re.error, RecursionError, OverflowError) as error:
        print(json.dumps(str(error)), flush=True)
        break
    print("null", flush=True)
"""
"""Matches in the three forms that PEFT uses: of target, rank and layer patterns. Prints a fault, or null."""


def check_patterns(
    key: str, expressions: Iterable[str], names: Sequence[str], *, seconds: float = SECONDS
) -> None:
    """Refuse expressions that are none, or that take too long.

    Args:
        key: where the expressions come from, for messages.
        expressions: regular expressions.
        names: full module names of the model.
        seconds: of processor time for all of them, so that a busy machine changes no answer.

    Raises:
        RecipeError: naming the expression at fault.
    """
    unknown = [expression for expression in expressions if not _LITERAL.fullmatch(expression)]
    if not unknown:
        return
    command = [sys.executable, "-I", "-S", "-c", _CHILD]
    request = json.dumps([unknown, list(names), seconds])
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    late = done.returncode == -signal.SIGVTALRM
    faults = [json.loads(line) for line in done.stdout.splitlines()]
    shown = repr(unknown[max(0, min(len(faults) - (not late), len(unknown) - 1))])[:200]
    if late:
        raise RecipeError(
            f"{key}: the expression {shown} did not end within {seconds:g} s on the module names of this "
            "model: write it without repetitions of repetitions such as (a+)+"
        )
    if len(faults) < len(unknown) or faults[-1] is not None:
        fault = faults[-1] if faults and faults[-1] else "it cannot be matched"
        raise RecipeError(f"{key}: {shown} is no regular expression over module names: {fault}")
