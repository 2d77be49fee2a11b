"""Starting the processes of a run: what has to be arranged before anything else asks how many there are."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


def start_processes() -> None:
    """Let the processes of a launcher meet, with NCCL on GPUs and gloo without them.

    ``accelerate`` by itself lets processes without a GPU meet only when it is told that they compute on the
    CPU, and shards nothing there: FSDP2 is for its GPUs only. Two processes on a CPU are how this project's
    tests run what many GPUs run.
    """
    if uses_deepspeed():
        clear_abandoned_builds()
    on_gpu = torch.cuda.is_available()
    state = PartialState(cpu=not on_gpu)
    if not on_gpu and state.num_processes > 1 and uses_fsdp():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def uses_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def uses_zero3() -> bool:
    """Whether the launcher asks for DeepSpeed ZeRO-3."""
    return uses_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def clear_abandoned_builds() -> None:
    """Remove what killed processes left of the extensions that DeepSpeed compiles at their first use.

    PyTorch marks a build by a file ``lock``, open in the process that builds. Of a killed process it stays
    behind, and every later run would wait for it without end and without a word.
    """
    from torch.utils.cpp_extension import get_default_build_root  # takes setuptools along

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not root.is_dir():
        return
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two that clear must not take a new build's mark
        for mark in root.glob("**/lock"):
            if not _is_open(mark):
                mark.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _is_open(file: Path) -> bool:
    """Whether a living process has it open."""
    files = (process.info["open_files"] or () for process in psutil.process_iter(["open_files"]))
    return any(each.path == str(file.resolve()) for opened in files for each in opened)
