"""Processes that meet: what has to be arranged before anything else asks how many there are."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


def start_processes() -> None:
    """Let the processes of a launcher meet, with NCCL on GPUs and gloo without them.

    ``accelerate`` by itself lets processes without a GPU meet only when it is told that they compute on the
    CPU, and shards nothing there: FSDP2 is for its GPUs only. Two processes on a CPU are how this project's
    tests run what many GPUs run.
    """
    on_gpu = torch.cuda.is_available()
    state = PartialState(cpu=not on_gpu)
    if not on_gpu and state.num_processes > 1 and uses_fsdp():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
