"""Sets up the processes of a run, before anything else asks how many there are."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from scst.distributed.launcher_environment import uses_deepspeed, uses_fsdp


def start_processes() -> None:
    """Initialise the process group of a launcher: NCCL with GPUs, gloo without.

    ``accelerate`` initialises gloo only when it is told that the processes compute on the CPU, and it shards
    no weights there. This project's tests run FSDP2 in two processes on a CPU, so both are arranged here.
    """
    if uses_deepspeed():
        clear_abandoned_builds()
    on_gpu = torch.cuda.is_available()
    state = PartialState(cpu=not on_gpu)
    if not on_gpu and state.num_processes > 1 and uses_fsdp():
        # AcceleratorState turns MULTI_GPU into FSDP when the launcher asks for it, but not MULTI_CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def clear_abandoned_builds() -> None:
    """Remove the lock files that killed processes left in the build folders of DeepSpeed's extensions.

    PyTorch marks a build with a file ``lock``, which the building process keeps open. A killed process leaves
    the file behind, and every later run would wait for it for ever, without a message.
    """
    from torch.utils.cpp_extension import get_default_build_root  # imports setuptools: only when needed

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not root.is_dir():
        return
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # else a second process could remove the lock of a new build
        for mark in root.glob("**/lock"):
            if not _is_open(mark):
                mark.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _is_open(file: Path) -> bool:
    """Whether a running process has the file open."""
    files = (process.info["open_files"] or () for process in psutil.process_iter(["open_files"]))
    return any(each.path == str(file.resolve()) for opened in files for each in opened)
