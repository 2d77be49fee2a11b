"""Starts that meet an earlier run, or each other: nothing is lost, and the answer says why."""

from __future__ import annotations

import os
import signal

from tests.chaos.events import at
from tests.chaos.kills import Outcome
from tests.chaos.lab import Lab, Workload
from tests.support.waiting import wait_until


def two_runs_at_once(lab: Lab, workload: Workload) -> Outcome:
    """Two runs start together in one folder: one is refused (exit code 2), the other ends undisturbed."""
    output = f"two-runs-{workload.name}"
    log, go = lab.folder / f"{output}.log", lab.folder / f"{output}.go"

    def setup(rank: int) -> None:  # who trains waits until the other one was refused
        at("on_step_begin", 0, lambda: wait_until(go.exists))

    settings = {"processes": workload.processes, "setup": setup, **workload.keys}
    runs = [lab.start(workload.stage, output, **settings) for _ in range(2)]
    wait_until(lambda: log.is_file() and "another run is at work" in log.read_text())
    go.touch()
    codes = sorted(run.wait() for run in runs)
    expected = [[0] * workload.processes, [2] * workload.processes]
    survived = codes == expected and lab.adapter(output) == lab.undisturbed(workload)
    return Outcome(f"two runs at once: {workload.name}", 1, int(survived), [0], f"exit codes {codes}")


def killed_replacement(lab: Lab) -> Outcome:
    """SIGKILL to a run that replaces an earlier one, before its first checkpoint: that one is put back."""
    workload, output = Workload("sft", 1), "killed-replacement"
    lab.start("sft", output, **workload.keys).wait()
    before = lab.adapter(output)
    replacing = {**workload.keys, "resume": False, "overwrite": True}
    killed = lab.start("sft", output, setup=lambda rank: at("on_step_begin", 1, _kill), **replacing).wait()
    away = not (lab.folder / output / "adapter_model.safetensors").exists()
    refused = lab.start("sft", output, **workload.keys).wait()
    text = (lab.folder / f"{output}.log").read_text()
    again = lab.start("sft", output, **workload.keys).wait()
    survived = (killed, away, refused, again) == ([-signal.SIGKILL], True, [2], [0])
    survived = survived and "the earlier run has been put back" in text and lab.adapter(output) == before
    return Outcome("killed replacement", 1, int(survived), [0], f"exit codes {killed + refused + again}")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
