"""Real processes that meet over gloo, started fast and never waited for without end.

They are forked from a server that has imported the libraries, get the environment that ``accelerate launch``
would give them for a device configuration, and are killed, all of them, when one fails or time is up.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.preloaded import SERVER


def device_config(name: str) -> Path:
    """A file of ``recipes/accelerate``."""
    return ROOT / "recipes" / "accelerate" / f"{name}.yaml"


def environment_of(config: Path) -> dict[str, str]:
    """What ``accelerate launch --config_file`` adds to the environment of its processes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def run_together(
    job: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    environment: dict[str, str] | None = None,
    num_processes: int = 2,
    timeout_s: float = 1800,  # takes seconds; the first under DeepSpeed compiles for minutes
) -> list[Any]:
    """Run ``job(*arguments)`` in processes that can meet; returns what it returned in each.

    Args:
        job: a function of a module.
        folder: for the processes' output and results.
        environment: added to that of every process.
        num_processes: how many.
        timeout_s: after which all of them are killed.

    Raises:
        AssertionError: when one fails or time is up, with what each of them printed last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVER])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "OMP_NUM_THREADS": "1",
    }
    processes = []
    for rank in range(num_processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        work = (job, arguments, (environment or {}) | shared | own, folder / f"process-{rank}")
        processes.append(context.Process(target=_work, args=work, daemon=True))
    for process in processes:
        process.start()
    _wait(processes, folder, time.monotonic() + timeout_s)
    return [pickle.loads((folder / f"process-{rank}.pickle").read_bytes()) for rank in range(num_processes)]


def _wait(processes: list[Any], folder: Path, deadline: float) -> None:
    """Until all have ended well; else none of them is left."""
    try:
        while any(process.is_alive() for process in processes):
            if time.monotonic() > deadline or any(process.exitcode for process in processes):
                break
            time.sleep(0.02)
        codes = [process.exitcode for process in processes]
        assert not any(code is None or code for code in codes), (
            f"exit codes {codes} (None: hangs)\n"
            + "\n".join(
                f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log"))
            )
        )
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(job: Callable[..., Any], arguments: tuple, environment: dict[str, str], name: Path) -> None:
    with name.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ.update(environment)
        _without_compiling()
        try:
            result = job(*arguments)
            name.with_suffix(".pickle").write_bytes(pickle.dumps(result))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os._exit(0)  # no exit handlers: one process need not wait for another to be torn down


def _without_compiling() -> None:
    """Spare DeepSpeed a minute of compiling: its collectives in shared memory, which training never calls."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
