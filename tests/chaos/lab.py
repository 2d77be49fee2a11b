"""Real training runs in processes of their own, to be killed: started by fork, so that they begin at once.

The process that forks has imported everything and computed nothing: torch's threads do not survive a fork.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.events import KINDS, Event, on_step, record, recorded
from tests.support.ports import free_port

DEADLINE_S = 900.0
"""A run takes seconds, on the busiest machine a minute or two; one that takes longer hangs."""

Setup = Callable[[int], None]
"""Called in a run's process with its rank before training begins: plants the fault."""


@dataclass
class Run:
    """The processes of one command.

    Attributes:
        pids: by rank.
        log: what they wrote.
        codes: exit codes by rank once they are known; negative: killed by that signal.
    """

    pids: list[int]
    log: Path
    progress: mmap.mmap
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Optimizer steps that were completed, of the whole run."""
        return struct.unpack("q", self.progress[:8])[0]

    def wait(self, timeout: float = DEADLINE_S) -> list[int]:
        """Exit codes of all processes; those that do not end in time are killed and count as 124."""
        deadline = time.monotonic() + timeout
        while len(self._collect()) < len(self.pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        for rank in set(range(len(self.pids))) - set(self.codes):
            os.kill(self.pids[rank], signal.SIGKILL)
            os.waitpid(self.pids[rank], 0)
            self.codes[rank] = 124
        return [self.codes[rank] for rank in range(len(self.pids))]

    def wait_for(self, rank: int) -> int:
        """Exit code of one process."""
        deadline = time.monotonic() + DEADLINE_S
        while rank not in self._collect() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.codes[rank] if rank in self.codes else self.wait(0.0)[rank]

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Send a signal to all processes, or to some."""
        self._collect()
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if rank not in self.codes:
                os.kill(self.pids[rank], number)

    def _collect(self) -> dict[int, int]:
        """Exit codes of the processes that have ended so far, by rank."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return self.codes


@dataclass(frozen=True)
class Workload:
    """A run to be disturbed."""

    stage: str
    processes: int

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.processes}"

    @property
    def keys(self) -> dict[str, Any]:
        """The same batch of four images a step, however many processes there are."""
        return {"per_device_train_batch_size": 4 // self.processes}


class Lab:
    """A folder with a tiny model, a dataset and an adapter, and commands on them.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.counter = 0

    def build(self) -> None:
        """Write model, dataset and the adapter that SCST starts from; in processes of their own."""
        from tests.support.worlds import write_model, write_risc

        pid = os.fork()
        if pid == 0:
            write_model(self.folder / "model")
            write_risc(self.folder / "data")
            os._exit(0)
        os.waitpid(pid, 0)
        codes = self.start("sft", "adapter", max_steps=2, save_strategy="no", eval_strategy="no").wait()
        assert codes == [0], (self.folder / "adapter.log").read_text()

    def keys(self, stage: str, output: str, **keys: Any) -> dict[str, Any]:
        """The recipe of a run: 8 steps over three epochs, evaluated and saved every other one."""
        settings = {
            "model_name_or_path": str(self.folder / "model"),
            "dataset": str(self.folder / "data"),
            "output_dir": str(self.folder / output),
            "max_new_tokens": 8,
            "precision": "fp32",
            "quantization": "none",
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 8,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "validation_images": 4,
            "validation_batch_size": 2,
            "metric_for_best_model": "cider_d",
            "load_best_model_at_end": False,
            "seed": 3,
            "resume": True,
        }
        if stage == "sft":
            return settings | {"lora_rank": 4, "lora_dropout": 0.1} | keys
        rewards = [{"name": "cider_d", "normalize": True}]
        scst = {
            "adapter": str(self.folder / "adapter"),
            "num_samples": 2,
            "table_steps": 0,
            "kl_weight": 0.05,
        }
        return settings | scst | {"rewards": rewards, "table_steps": 0} | keys

    def start(
        self, stage: str, output: str, *, processes: int = 1, setup: Setup | None = None, **keys: Any
    ) -> Run:
        """Start a training command; its log is ``<output>.log``."""
        from tests.support.worlds import write_recipe

        self.counter += 1
        settings = self.keys(stage, output, **keys)
        recipe = write_recipe(self.folder / f"recipe-{self.counter}.yaml", **settings)
        log = self.folder / f"{output}.log"
        progress = mmap.mmap(-1, 8)
        port, pids = free_port(), []
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                _become(stage, recipe, rank, processes, port, log, progress, setup)
            pids.append(pid)
        return Run(pids, log, progress)

    def undisturbed(self, workload: Workload) -> bytes:
        """The adapter of the run that nobody disturbs; its events are recorded on the way."""
        output = f"whole-{workload.name}"
        if not (self.folder / output / "run.json").is_file():
            run = self.start(
                workload.stage,
                output,
                processes=workload.processes,
                setup=lambda rank: [
                    record(kind, self.folder / output, self._recording(workload, rank, kind))
                    for kind in KINDS
                ],
                **workload.keys,
            )
            assert run.wait() == [0] * workload.processes, run.log.read_text()[-2000:]
        return self.adapter(output)

    def events(self, workload: Workload, rank: int, kind: str) -> list[Event]:
        """What happens in one process of the run that nobody disturbs."""
        self.undisturbed(workload)
        return recorded(self._recording(workload, rank, kind))

    def _recording(self, workload: Workload, rank: int, kind: str) -> Path:
        return self.folder / f"{workload.name}-{rank}-{kind}.events"

    def adapter(self, output: str) -> bytes:
        """The bytes of the adapter that a run ended with."""
        return (self.folder / output / "adapter_model.safetensors").read_bytes()

    def newest(self, output: str) -> int:
        """Step of the newest complete checkpoint; 0 when there is none."""
        from scst.training.run_folder.checkpoints import newest_complete
        from scst.training.run_folder.manifest import read_manifest

        folder = newest_complete(self.folder / output)
        return read_manifest(folder)["step"] if folder else 0

    def forget(self, output: str) -> None:
        """Remove what a run left."""
        shutil.rmtree(self.folder / output, ignore_errors=True)
        (self.folder / f"{output}.log").unlink(missing_ok=True)


def _become(
    stage: str,
    recipe: Path,
    rank: int,
    processes: int,
    port: int,
    log: Path,
    progress: mmap.mmap,
    setup: Setup | None,
) -> None:
    """Turn a forked process into the training command; does not return."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        ):
            signal.signal(number, handler)  # a shell starts background processes deaf to SIGINT
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        on_step(lambda step: struct.pack_into("q", progress, 0, step))
        if setup:
            setup(rank)
        from tests.support.commands import call

        code = call(stage, "--config", str(recipe))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
