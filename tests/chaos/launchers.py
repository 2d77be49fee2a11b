"""What becomes of training when its launcher is told to stop or killed: it saves, and nothing stays behind.

The launcher is hit at a counted event: a reward of the training process does it in the third step. Launchers
start Python anew, so these runs take longer than the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scst.training.run_folder.checkpoints import newest_complete
from scst.training.run_folder.manifest import read_manifest
from tests.chaos.kills import Outcome
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, wait_for_the_end_of, wait_until
from tests.support.worlds import write_recipe

STEP = 2
"""Completed steps when the launcher is hit."""
PYTHON = sys.executable
ACCELERATE = [PYTHON, "-m", "accelerate.commands.launch"]
LAUNCHERS: dict[str, tuple[list[str], int]] = {
    "accelerate launch": (
        [*ACCELERATE, "--num_processes", "1", "--cpu", "launch/scst.py"],
        1,
    ),
    "accelerate launch, 2": (
        [*ACCELERATE, "--config_file", "recipes/accelerate/cpu-2.yaml", "launch/scst.py"],
        2,
    ),
    "torchrun, 2": (
        [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "launch/scst.py"],
        2,
    ),
    "scst rl, 2": ([PYTHON, "-m", "scst.cli", "rl", "--accelerate_config", "cpu-2"], 2),
    "scst rl": ([PYTHON, "-m", "scst.cli", "rl", "--accelerate_config", "cpu"], 1),
}
"""Name -> command without its recipe, and how many processes train. The last one replaces itself."""


@dataclass
class Ended:
    """A run whose launcher was hit.

    Attributes:
        code: exit code of the launcher; negative: ended by that signal.
        text: what was written to the terminal.
        newest: step of the newest complete checkpoint.
        processes: those that trained; none of them is left.
    """

    code: int
    text: str
    newest: int
    processes: list[int] = field(default_factory=list)


def hit_the_launcher(completions: list[str], trainer_state: Any = None, **columns: Any) -> list[float]:
    """A reward that weighs nothing. In the third step of the first process it hits the process above it."""
    folder = Path(os.environ["SCST_TEST_LAUNCHER"])
    (folder / f"{os.getpid()}.trains").touch()
    order = json.loads((folder / "order.json").read_text())
    if order and trainer_state.global_step == STEP and os.environ.get("RANK", "0") == "0":
        (folder / "order.json").write_text("null")
        launcher = os.getpid() if order["itself"] else os.getppid()
        os.kill(launcher, order["signal"])
        if order["dies"]:  # the kernel tells this process of it: not a step later
            wait_until(lambda: os.getppid() != launcher, "the end of the launcher")
    return [0.0] * len(completions)


def hit(name: str, number: int, recipe: Path, output: Path, folder: Path) -> Ended:
    """Run a launcher to its end, which a signal in the third step brings about, and that of the training.

    Args:
        name: of :data:`LAUNCHERS`.
        number: the signal.
        recipe: of the self-critical stage, with :func:`hit_the_launcher` among its rewards.
        output: its output folder.
        folder: for notes between the processes.
    """
    command, processes = LAUNCHERS[name]
    folder.mkdir()
    dies = number == signal.SIGKILL or name == "accelerate launch"
    itself = name == "scst rl"
    order = {"signal": int(number), "dies": dies and not itself, "itself": itself}
    (folder / "order.json").write_text(json.dumps(order))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log.txt").open("w") as log:
        launcher = subprocess.Popen(
            [*command, "--config", str(recipe)],
            cwd=ROOT,
            env=os.environ | environment | {"SCST_TEST_LAUNCHER": str(folder)},
            stdout=log,
            stderr=log,
            preexec_fn=_hear_of_hangups,
        )
        try:
            code = launcher.wait(PATIENCE_S)
        finally:
            launcher.kill()
    trained = [int(path.stem) for path in folder.glob("*.trains")]
    text = (folder / "log.txt").read_text()
    assert len(trained) == processes, text[-2000:]
    wait_for_the_end_of(trained)
    newest = newest_complete(output)
    text = (folder / "log.txt").read_text()
    return Ended(code, text, read_manifest(newest)["step"] if newest else 0, trained)


def _hear_of_hangups() -> None:
    """SIGHUP ends the launcher, also where this suite was started by ``nohup``."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def recipe_of(keys: dict[str, Any], path: Path) -> Path:
    """The recipe of a run whose launcher is hit."""
    rewards = [{"import_path": f"{__name__}:hit_the_launcher", "weight": 0.0}, {"name": "cider_d"}]
    return write_recipe(path, **keys | {"rewards": rewards})


def launcher_ended(lab: Any, name: str, number: int) -> Outcome:
    """One launcher, one signal: a checkpoint of the step, nothing left behind, and a run that can go on."""
    label = f"{signal.Signals(number).name} to {name}"
    output = f"launcher-{label}".replace(" ", "-").replace(",", "")
    processes = LAUNCHERS[name][1]
    keys = lab.keys("scst", output, per_device_train_batch_size=4 // processes, save_steps=100)
    recipe = recipe_of(keys | {"eval_strategy": "no"}, lab.folder / f"{output}.yaml")
    ended = hit(name, number, recipe, lab.folder / output, lab.folder / f"{output}.notes")
    killed = number == signal.SIGKILL and name == "scst rl"  # there is nobody to save
    saved = ended.newest in (STEP + 1, STEP + 2) or (killed and ended.newest == 0)
    survived = ended.code != 0 and saved and _resumes(lab, recipe, output)
    note = f"saved step {ended.newest}, {len(ended.processes)} processes ended, launcher {ended.code}"
    if not survived:
        note += f"; {' '.join(ended.text[-800:].split())}"
    return Outcome(label, 1, int(survived), [], note)


def jobs(lab: Any) -> list[Callable[[], Outcome]]:
    """Every launcher is told to stop, and killed; some lose their terminal."""
    cases = [(name, signal.SIGTERM) for name in LAUNCHERS]
    cases += [(name, signal.SIGKILL) for name in LAUNCHERS]
    cases += [(name, signal.SIGHUP) for name in ("accelerate launch", "scst rl, 2")]
    return [lambda n=name, s=number: launcher_ended(lab, n, s) for name, number in cases]


def _resumes(lab: Any, recipe: Path, output: str) -> bool:
    """Whether the command, repeated by plain python, comes to its end."""
    folder = lab.folder / f"{output}.notes"
    done = subprocess.run(
        [PYTHON, "launch/scst.py", "--config", str(recipe), "--max_steps", "5"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCST_TEST_LAUNCHER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return done.returncode == 0 and (lab.folder / output / "run.json").is_file()
