"""SIGKILL at random moments: the run that is resumed until it is done must end with the same adapter."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.lab import Lab, Run

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}


@dataclass(frozen=True)
class Outcome:
    """What became of one fault, or of several of a kind.

    Attributes:
        fault: what was done to the run.
        injected: how often.
        survived: how often the run went on as promised.
        lost: optimizer steps that had to be made again, for every injection.
        note: what else was seen.
    """

    fault: str
    injected: int
    survived: int
    lost: list[int]
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """A run to be killed."""

    stage: str
    processes: int

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.processes}"

    @property
    def keys(self) -> dict[str, Any]:
        """The same batch of four images a step, however many processes there are."""
        return {"per_device_train_batch_size": 4 // self.processes}


def kill_repeatedly(lab: Lab, workload: Workload, kills: int, rng: random.Random) -> list[Outcome]:
    """Kill a run so many times, by the clock and at file operations in turn; resume it after each.

    One run takes several kills: it is killed until it is done, then the next begins.

    Returns:
        One outcome for kills by the clock, and one for those at a file operation.
    """
    expected, seconds, operations = _reference(lab, workload)
    by_clock: list[tuple[bool, int]] = []
    by_file: list[tuple[bool, int]] = []
    output = f"killed-{workload.name}"
    while len(by_clock) + len(by_file) < kills:
        lab.forget(output)
        injected: list[tuple[list, int]] = []
        while len(by_clock) + len(by_file) + len(injected) < kills:
            at_file = len(injected) % 2 == 1
            if at_file:
                lost = _kill_at_file(lab, workload, output, rng.randrange(operations))
            else:
                lost = _kill_by_clock(lab, workload, output, rng.uniform(0.2, 1.0) * seconds, rng)
            if lost is None:  # it was done before
                break
            injected.append((by_file if at_file else by_clock, lost))
        codes = lab.start(workload.stage, output, processes=workload.processes, **workload.keys).wait()
        same = codes == [0] * workload.processes and lab.adapter(output) == expected
        for kind, lost in injected:
            kind.append((same, lost))
        if not same:
            break
    kinds = (("SIGKILL, random moment", by_clock), ("SIGKILL, random file operation", by_file))
    return [_outcome(f"{name}: {workload.name}", results) for name, results in kinds if results]


def _outcome(fault: str, results: list[tuple[bool, int]]) -> Outcome:
    lost = [steps for _, steps in results]
    return Outcome(fault, len(results), sum(same for same, _ in results), lost, "same adapter, bit for bit")


def _reference(lab: Lab, workload: Workload) -> tuple[bytes, float, int]:
    """Adapter, seconds and number of file operations of the run that nobody disturbs."""
    output = f"whole-{workload.name}"
    counted = lab.folder / f"{output}.operations"
    started = time.monotonic()
    run = lab.start(
        workload.stage,
        output,
        processes=workload.processes,
        setup=lambda rank: rank or _count_operations(lab.folder / output, counted),
        **workload.keys,
    )
    codes = run.wait()
    assert codes == [0] * workload.processes, run.log.read_text()[-2000:]
    return lab.adapter(output), time.monotonic() - started, counted.stat().st_size


def _kill_by_clock(
    lab: Lab, workload: Workload, output: str, seconds: float, rng: random.Random
) -> int | None:
    """Lost steps; None when the run was done before. Of two processes one is killed, or both."""
    run = lab.start(workload.stage, output, processes=workload.processes, **workload.keys)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.has_ended():
        time.sleep(0.002)
    ranks = rng.choice([None, [0], [1]]) if workload.processes > 1 else None
    run.signal(signal.SIGKILL, ranks)
    return _lost(lab, run, output)


def _kill_at_file(lab: Lab, workload: Workload, output: str, operation: int) -> int | None:
    """As above, by the main process itself before its n-th file operation below the output folder."""
    run = lab.start(
        workload.stage,
        output,
        processes=workload.processes,
        setup=lambda rank: rank or _die_at_operation(lab.folder / output, operation),
        **workload.keys,
    )
    while not run.has_ended():
        time.sleep(0.002)
    return _lost(lab, run, output)


def _lost(lab: Lab, run: Run, output: str) -> int | None:
    """Do as launchers do when a process dies: tell the others; they have 30 s."""
    run.signal(signal.SIGTERM)
    codes = run.wait(30.0)
    if 124 in codes:
        raise AssertionError(f"a process of a killed run hung: exit codes {codes}")
    if -signal.SIGKILL not in codes:
        return None
    return max(0, run.step - lab.newest(output))


def _on_file_operation(folder: Path, act: Callable[[], None]) -> None:
    prefix = str(folder)

    def hook(event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(prefix):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        act()

    sys.addaudithook(hook)


def _count_operations(folder: Path, counted: Path) -> None:
    """One byte of a file for each operation."""
    descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _on_file_operation(folder, lambda: os.write(descriptor, b"."))


def _die_at_operation(folder: Path, operation: int) -> None:
    seen = 0

    def count() -> None:
        nonlocal seen
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    _on_file_operation(folder, count)
