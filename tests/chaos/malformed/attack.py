"""Gives one malformed input to one real command, in a forked process, and says what became of it."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scst.config.recipes import RECIPES

SECONDS = 20
"""A command that computes longer hangs, as does one that waits ``PATIENCE`` times as long (busy machines)."""
PATIENCE = 6
LONGEST_OUTPUT = 100_000
LONGEST_SENTENCE = 12_000
IN_ONE_PROCESS = 25
"""Commands that one process runs; to fork one for each would take longer than they do."""
MEMORY = 6 << 30
"""Address space of a command."""
CLEAR, ACCEPTED = "clear error", "rightly accepted"
TRACEBACK, HANG, FLOOD, WRONG, REFUSED = (
    "traceback",
    "hang",
    "output over 100 kB",
    "wrongly accepted",
    "wrongly refused",
)
FAULTS = (TRACEBACK, HANG, FLOOD, WRONG, REFUSED)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: what it is an input of.
        name: what is wrong with it.
        stage: whose command gets it.
        arguments: of the command.
        prepare: called with the folder that the process works in, before the command.
        is_right: True must be accepted, False must be refused, None may be either.
        names: a word that a refusal must hold.
        trains: whether a dry run that passes is followed by the run itself, which must then succeed.
        seconds: after which it hangs.
    """

    kind: str
    name: str
    stage: str
    arguments: Sequence[str]
    prepare: Callable[[Path], object] = lambda folder: None
    is_right: bool | None = None
    names: str = ""
    trains: bool = False
    seconds: int = SECONDS


@dataclass(frozen=True)
class Outcome:
    """What became of a case, with what the command wrote."""

    case: Case
    result: str
    seconds: float
    output: str


def attack(cases: Sequence[Case], folder: Path) -> list[Outcome]:
    """Run cases one after the other in a forked process.

    Args:
        cases: what to run.
        folder: an empty folder for them to work in.

    Returns:
        The outcomes of those that were begun: when one hangs or dies, the ones after it are not.
    """
    pid = os.fork()
    if pid == 0:
        _become_the_command(cases, folder)
    _, status = os.waitpid(pid, 0)
    outcomes = []
    for number, case in enumerate(cases):
        place = folder / str(number)
        if not place.exists():
            break
        output = (place / OUTPUT).read_bytes()[: LONGEST_OUTPUT + 1].decode("utf-8", "replace")
        ended = place / ENDED
        code, seconds = map(float, ended.read_text().split()) if ended.exists() else (None, case.seconds)
        outcomes.append(Outcome(case, _result(case, code, status, output), seconds, output))
    return outcomes


DRY = "--dry_run"
FAILED_LATER = 71
"""Exit code of a run that ended with an error although its dry run had passed."""
OUTPUT, ENDED, WORK = "output", "ended", "work"


def _become_the_command(cases: Sequence[Case], folder: Path) -> None:
    """Never returns. The alarm kills whatever the process hangs in."""
    try:
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, case in enumerate(cases):
            place = folder / str(number)
            (place / WORK).mkdir(parents=True)
            descriptor = os.open(place / OUTPUT, os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(descriptor, stream)
            os.close(descriptor)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (a test may have put something there)
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
            os.chdir(place / WORK)
            case.prepare(place / WORK)
            signal.alarm(case.seconds * PATIENCE)
            signal.setitimer(signal.ITIMER_PROF, case.seconds)
            started = time.monotonic()
            code = _run(case)
            sys.stdout.flush()
            sys.stderr.flush()
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            (place / ENDED).write_text(f"{code} {time.monotonic() - started}")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _run(case: Case) -> int:
    """The exit code of the command; 70 for a traceback."""
    try:
        module = importlib.import_module(f"scst.cli.{RECIPES[case.stage].command.split()[0]}")
        more = RECIPES[case.stage].command.split()[1:]
        code = int(module.main([*more, *case.arguments]))
        if code == 0 and case.trains:
            code = int(module.main([*more, *(flag for flag in case.arguments if flag != DRY)]))
            return FAILED_LATER if code else 0
        return code
    except BaseException:
        traceback.print_exc()
        return 70


def _result(case: Case, code: float | None, status: int, output: str) -> str:
    if code is None:
        alarms = (signal.SIGALRM, signal.SIGPROF)
        return HANG if os.WIFSIGNALED(status) and os.WTERMSIG(status) in alarms else TRACEBACK
    if code == FAILED_LATER:
        return WRONG
    if code not in (0, 1, 2) or "Traceback (most recent call last)" in output:
        return TRACEBACK
    if len(output) > LONGEST_OUTPUT:
        return FLOOD
    if code == 0:
        return WRONG if case.is_right is False else ACCEPTED
    if case.is_right:
        return REFUSED
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    is_sentence = len(errors) == 1 and len(errors[0]) < LONGEST_SENTENCE and case.names in output
    return CLEAR if is_sentence else TRACEBACK


def _next(cases: Sequence[Case], done: int) -> Sequence[Case]:
    """The cases that run in one process; one that trains leaves state of the libraries behind."""
    if cases[done].trains:
        return cases[done : done + 1]
    several = cases[done : done + IN_ONE_PROCESS]
    first = next((number for number, case in enumerate(several) if case.trains), len(several))
    return several[:first]


def attack_all(cases: Sequence[Case], say: Callable[[Outcome], None]) -> Counter[tuple[str, str]]:
    """Run cases, some of them in one process; counts results by kind.

    Args:
        cases: what to run.
        say: called with the outcome of every case that was not survived.
    """
    counts: Counter[tuple[str, str]] = Counter()
    done = 0
    while done < len(cases):
        with tempfile.TemporaryDirectory(prefix="scst-malformed-") as folder:
            outcomes = attack(_next(cases, done), Path(folder))
        if not outcomes:
            raise RuntimeError(f"no process could begin with {cases[done].name!r}")
        done += len(outcomes)
        for outcome in outcomes:
            counts[outcome.case.kind, outcome.result] += 1
            if outcome.result in FAULTS:
                say(outcome)
    return counts
