"""One function per fault: make it happen to a real run, at a counted event, and see what the run does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scst.data.files import STAGING
from tests.chaos.events import at
from tests.chaos.kills import Outcome
from tests.chaos.lab import Lab, Run, Setup, Workload
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S


def _in_step(step: int, act: Callable[[], Any], rank: int = 0) -> Setup:
    """Plants a fault in one process, in the step after so many completed ones."""
    return lambda this: at("on_step_begin", step, act) if this == rank else None


def _goes_on(lab: Lab, workload: Workload, output: str) -> bool:
    """Whether the resumed run ends with the adapter of the undisturbed one."""
    codes = lab.start(workload.stage, output, processes=workload.processes, **workload.keys).wait()
    return codes == [0] * workload.processes and lab.adapter(output) == lab.undisturbed(workload)


def _one(fault: str, survived: bool, run: Run, lab: Lab, output: str, step: int, note: str) -> Outcome:
    if not survived:
        note = f"{note}; exit codes {run.codes}; {' '.join(run.log.read_text()[-600:].split())}"
    return Outcome(fault, 1, int(survived), [max(0, run.step - step)], note)


def told_to_stop(lab: Lab, workload: Workload, number: int) -> Outcome:
    """SIGTERM or SIGINT: a checkpoint of this very step, a message, the exit code that shells give."""
    name, output = signal.Signals(number).name, f"{signal.Signals(number).name}-{workload.name}"
    last = workload.processes - 1  # one process is told; all must leave
    setup = _in_step(3, lambda: signal.raise_signal(number), last)
    run = lab.start(workload.stage, output, processes=workload.processes, setup=setup, **workload.keys)
    codes = run.wait()
    newest, text = lab.newest(output), run.log.read_text()
    left = codes == [128 + number] * workload.processes or codes[-1] == 128 + number
    said = f"stopped at step {newest} of 8" in text and "--resume true" in text
    survived = left and said and newest == run.step == 4 and _goes_on(lab, workload, output)
    return _one(f"{name}: {workload.name}", survived, run, lab, output, newest, "saved, left, resumed")


def told_twice(lab: Lab) -> Outcome:
    """The second SIGINT ends the process at once, in the middle of a step that would never end."""

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        threading.Event().wait()

    workload = Workload("sft", 1)
    run = lab.start("sft", "SIGINT-twice", setup=_in_step(3, interrupt), **workload.keys)
    codes, text = run.wait(), run.log.read_text()
    newest = lab.newest("SIGINT-twice")
    said = text.count("SIGINT: saving at the end of this step; again to leave at once") == 1
    survived = codes == [-signal.SIGINT] and said and run.step == 3
    survived = survived and _goes_on(lab, workload, "SIGINT-twice")
    return _one("SIGINT twice", survived, run, lab, "SIGINT-twice", newest, "left at once")


@contextmanager
def _small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of this size at the folder; False where the system forbids to mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _read_only(folder: Path) -> None:
    """Make a folder read-only, although the run has its lock open: a read-only view of it, on top of it.

    The kernel would refuse to remount the file system itself, as a broken disk does not.
    """
    for flags in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *flags, str(folder)], check=True)


def _writable_again(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(lab: Lab) -> Outcome:
    """The disk fills up in the middle of a checkpoint: reported, the run goes on, the next one is saved.

    Where no file system can be mounted, a limit on the size of files stands in: the write fails as well.
    """
    workload, output = Workload("scst", 1), "full-disk"
    folder, ballast = lab.folder / output, lab.folder / output / "ballast"
    with _small_disk(folder, 3000) as mounted:

        def setup(rank: int) -> None:
            at("on_evaluate", 4, lambda: _fill(folder, ballast, mounted))  # the checkpoint is next
            at("on_save", 4, lambda: _empty(ballast, mounted))

        run = lab.start("scst", output, setup=setup, **workload.keys)
        codes, text = run.wait(), run.log.read_text()
        said = "checkpoint-4 could not be written" in text and "newest complete one: checkpoint-2" in text
        complete = {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
        same = codes == [0] and lab.adapter(output) == lab.undisturbed(workload)
        survived = said and complete and same and not (folder / STAGING).exists()
        note = "reported; saved at the next one" + ("" if mounted else " (file size limit)")
        return _one("full disk", survived, run, lab, output, run.step, note)


def _fill(folder: Path, ballast: Path, mounted: bool) -> None:
    if not mounted:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        return
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(b"x" * max(0, free - 40_000))  # the checkpoint begins, and fails on its way


def _empty(ballast: Path, mounted: bool) -> None:
    if not mounted:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ballast.unlink(missing_ok=True)


def read_only_output(lab: Lab) -> Outcome:
    """The output folder becomes read-only: reported at each checkpoint; exit code 1 at the end."""
    workload, output = Workload("sft", 1), "read-only"
    folder = lab.folder / output
    with _small_disk(folder, 20000) as mounted:
        if not mounted:
            return Outcome("read-only output", 0, 0, [], "this system forbids to mount a file system")

        def setup(rank: int) -> None:
            at("on_evaluate", 4, lambda: _read_only(folder))  # the checkpoint is next

        run = lab.start("sft", output, setup=setup, **workload.keys)
        codes, text = run.wait(), run.log.read_text()
        newest = lab.newest(output)
        refused = lab.start("sft", output, **workload.keys).wait() == [2]
        _writable_again(folder)
        said = "Read-only file system" in text and "checkpoint-2" in text and "Traceback" not in text
        survived = codes == [1] and said and refused and newest == 2 and _goes_on(lab, workload, output)
        return _one("read-only output", survived, run, lab, output, newest, "reported; refused at the start")


def vanished_dataset(lab: Lab, workload: Workload) -> Outcome:
    """The images are gone in the middle of an epoch: the last step is saved, the message names the file."""
    output, images = f"vanished-{workload.name}", lab.folder / "data" / "resized"
    elsewhere = images.with_name("elsewhere")
    run = lab.start(
        workload.stage,
        output,
        processes=workload.processes,
        # an epoch has three steps: what comes next is that the images of the next one are read
        setup=lambda rank: rank or at("on_step_end", 3, lambda: images.rename(elsewhere)),
        **workload.keys,
    )
    try:
        codes = run.wait()
    finally:
        elsewhere.rename(images)
    text, newest = run.log.read_text(), lab.newest(output)
    said = "cannot be read any more" in text and "tile_" in text and "Traceback" not in text
    survived = codes == [2] * workload.processes and said and newest == run.step == 3
    survived = survived and _goes_on(lab, workload, output)
    return _one(
        f"vanished dataset: {workload.name}", survived, run, lab, output, newest, "saved; names the file"
    )


def corrupt_checkpoint(lab: Lab, damage: str) -> Outcome:
    """The newest checkpoint is damaged: the run says so and goes on from the one before."""
    workload, output = Workload("scst", 1), f"corrupt-{damage}"
    setup = _in_step(5, lambda: signal.raise_signal(signal.SIGKILL))
    run = lab.start("scst", output, setup=setup, **workload.keys)
    assert run.wait() == [-signal.SIGKILL], run.log.read_text()[-2000:]
    newest = lab.newest(output)
    _damage(lab.folder / output / f"checkpoint-{newest}", damage)
    before = lab.newest(output)
    survived = (before, newest) == (2, 4) and _goes_on(lab, workload, output)
    text = " ".join(run.log.read_text().split())
    survived = survived and f"checkpoint-{newest} is passed over for the one before" in text
    survived = survived and f"checkpoint-{before}" in text
    note = f"fell back from step {newest} to {before}"
    return _one(f"corrupt newest checkpoint: {damage}", survived, run, lab, output, before, note)


def _damage(checkpoint: Path, how: str) -> None:
    victim = checkpoint / "optimizer.pt"
    content = bytearray(victim.read_bytes())
    if how == "one bit":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif how == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif how == "file lost":
        victim.unlink()
    else:
        (checkpoint / "complete.json").write_text("{")


def dying_rank(lab: Lab, how: str) -> Outcome:
    """One of two processes dies in a step: the other leaves, and the traceback can be read."""
    workload, output = Workload("scst", 2), f"dying-{how}"

    def die() -> None:
        if how == "SIGKILL":
            signal.raise_signal(signal.SIGKILL)
        raise ZeroDivisionError("the fault of process 1")

    run = lab.start("scst", output, processes=2, setup=_in_step(3, die, 1), **workload.keys)
    codes, text = run.wait(), run.log.read_text()
    told = "ZeroDivisionError: the fault of process 1" in text or how == "SIGKILL"
    survived = 124 not in codes and 0 not in codes and told
    newest = lab.newest(output)
    survived = survived and newest == 2 and _goes_on(lab, workload, output)
    return _one(f"dying process: {how}", survived, run, lab, output, newest, "the other left by itself")


def stuck_reward(lab: Lab) -> Outcome:
    """A reward does not answer: the run ends after ``timeout_s`` with a checkpoint of the step before."""
    workload, output = Workload("scst", 1), "stuck"
    stuck = {"import_path": "tests.chaos.faults:stuck_at_step_four", "weight": 0.0, "timeout_s": 5}
    rewards = [{"name": "cider_d", "normalize": True}, stuck]
    run = lab.start("scst", output, rewards=rewards, setup=lambda rank: STUCK.set(), **workload.keys)
    codes = run.wait()
    text, newest = run.log.read_text(), lab.newest(output)
    said = "'stuck_at_step_four' did not answer within its `timeout_s` of 5 s" in text
    survived = codes == [1] and said and newest == run.step == 3
    codes = lab.start("scst", output, rewards=rewards, **workload.keys).wait()
    survived = survived and codes == [0] and lab.adapter(output) == lab.undisturbed(workload)
    return _one("stuck reward", survived, run, lab, output, newest, "saved; ended after its timeout")


STUCK = threading.Event()
"""Set in the process whose reward does not answer."""


def stuck_at_step_four(completions: list[str], trainer_state: Any = None, **columns: Any) -> list[float]:
    """A reward that weighs nothing, and hangs once."""
    if STUCK.is_set() and trainer_state is not None and trainer_state.global_step == 3:
        threading.Event().wait()
    return [0.0] * len(completions)


def ruined_numbers(lab: Lab, workload: Workload) -> Outcome:
    """A gradient that is no number in one step is skipped; when it stays so, the run ends with code 1."""
    output = f"nan-{workload.name}"

    def setup(rank: int) -> None:
        _ruin_gradients({3})

    run = lab.start(workload.stage, output, processes=workload.processes, setup=setup, **workload.keys)
    skipped = run.wait() == [0] * workload.processes and '"skipped_steps": 1' in _record(lab, output)
    lab.forget(output)
    keys = workload.keys | {"max_skipped_steps": 2}
    run = lab.start(
        workload.stage,
        output,
        processes=workload.processes,
        setup=lambda rank: _ruin_gradients({4, 5, 6, 7, 8}),
        **keys,
    )
    codes, text = run.wait(), run.log.read_text()
    newest = lab.newest(output)
    said = "NaN or infinite in 2 steps in a row" in text and f"checkpoint-{newest}" in text
    stopped = codes == [1] * workload.processes and said and "Traceback" not in text
    survived = skipped and stopped and newest == 2 and _goes_on(lab, workload, output)
    return _one(
        f"NaN gradient: {workload.name}", survived, run, lab, output, newest, "skipped; stopped after 2"
    )


def _record(lab: Lab, output: str) -> str:
    return (lab.folder / output / "run.json").read_text()


def _ruin_gradients(steps: set[int]) -> None:
    """NaN in one number of the gradient of one micro-batch, in these steps."""
    from transformers import Trainer

    original = Trainer._get_grad_norm

    def ruined(self: Any, model: Any, grad_norm: Any = None) -> Any:
        if self.state.global_step + 1 in steps:
            gradient = next(p.grad for p in model.parameters() if p.grad is not None)
            gradient.view(-1)[0] = float("nan")
            grad_norm = None
        return original(self, model, grad_norm)

    Trainer._get_grad_norm = ruined


BREAKING = """
import os, sys
from tests.chaos.events import at
from tests.support.commands import call

def fail():
    raise ZeroDivisionError("the fault of process 1")

if os.environ["RANK"] == "1":
    at("on_step_begin", 2, fail)
sys.exit(call("scst", *sys.argv[1:]))
"""


def launcher(lab: Lab) -> Outcome:
    """Under torchrun a process fails: its traceback is shown as the root cause."""
    from tests.support.worlds import write_recipe

    recipe = write_recipe(
        lab.folder / "torchrun.yaml", **lab.keys("scst", "torchrun", per_device_train_batch_size=2)
    )
    script = lab.folder / "breaking.py"
    script.write_text(BREAKING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), "--config", str(recipe)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    cause = done.stderr.split("Root Cause")[-1]
    survived = done.returncode != 0 and "ZeroDivisionError: the fault of process 1" in cause
    note = "its traceback is the root cause" if survived else " ".join(done.stderr[-800:].split())
    return Outcome("dying process: under torchrun", 1, int(survived), [], note)
