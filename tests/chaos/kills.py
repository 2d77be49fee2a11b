"""SIGKILL at random events: the run that is resumed until it is done must end with the same adapter."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

from tests.chaos.events import KINDS, die_at
from tests.chaos.lab import Lab, Workload


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


def kill_repeatedly(lab: Lab, workload: Workload, kills: int, rng: random.Random) -> list[Outcome]:
    """Kill a run so many times, at training events and at file operations in turn; resume it after each.

    One run takes several kills: it is killed until nothing is left to be killed in, then the next begins.

    Returns:
        One outcome for each kind of event.
    """
    results: dict[str, list[tuple[bool, int]]] = {kind: [] for kind in KINDS}
    output, done = f"killed-{workload.name}", 0
    for _ in range(20 * kills):
        if done == kills:
            break
        lab.forget(output)
        injected: list[tuple[str, int]] = []
        while done + len(injected) < kills:
            kind = KINDS[(done + len(injected)) % len(KINDS)]
            lost = _kill(lab, workload, output, kind, rng)
            if lost is None:  # it was done before
                break
            injected.append((kind, lost))
        codes = lab.start(workload.stage, output, processes=workload.processes, **workload.keys).wait()
        same = codes == [0] * workload.processes and lab.adapter(output) == lab.undisturbed(workload)
        for kind, lost in injected:
            results[kind].append((same, lost))
        done += len(injected)
        if not same:
            break
    return [_outcome(f"SIGKILL, {kind}: {workload.name}", found) for kind, found in results.items() if found]


def _outcome(fault: str, results: list[tuple[bool, int]]) -> Outcome:
    lost = [steps for _, steps in results]
    return Outcome(fault, len(results), sum(same for same, _ in results), lost, "same adapter, bit for bit")


def _kill(lab: Lab, workload: Workload, output: str, kind: str, rng: random.Random) -> int | None:
    """Start or resume the run and let one process kill itself at an event that is still to come.

    Returns:
        Lost steps; None when the run was done before.
    """
    rank = rng.randrange(workload.processes)
    newest = lab.newest(output)
    to_come = [e for e in lab.events(workload, rank, kind) if not newest or e.step > newest]
    if not to_come:
        return None
    event, number = rng.choice(to_come), rng.choice([signal.SIGTERM, signal.SIGKILL])
    run = lab.start(
        workload.stage,
        output,
        processes=workload.processes,
        setup=lambda this: die_at(kind, lab.folder / output, event) if this == rank else None,
        **workload.keys,
    )
    if run.wait_for(rank) == -signal.SIGKILL:
        run.signal(number)  # as launchers do when a process dies
    codes = run.wait()
    assert 124 not in codes, f"a process of a killed run hung: exit codes {codes}"
    return max(0, run.step - lab.newest(output)) if codes[rank] == -signal.SIGKILL else None
