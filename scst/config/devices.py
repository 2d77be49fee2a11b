"""Processes that meet: what has to be arranged before anything else asks how many there are."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from scst.adapters.lora import check_adapter_exists
from scst.errors import RecipeError


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


def check_devices(recipe: Any) -> None:
    """Refuse what cannot be divided among processes in the way the launcher asks for.

    Args:
        recipe: of a training stage; others divide nothing.

    Raises:
        RecipeError: naming what to use instead.
    """
    if not hasattr(recipe, "training"):
        return
    if (uses_fsdp() or uses_zero3()) and getattr(recipe, "cuda_graphs", False):
        raise RecipeError(
            "cuda_graphs: a recorded step would read the weights where they were gathered the last time: "
            "leave it out under ZeRO-3 and FSDP2"
        )
    if uses_fsdp() or uses_zero3():
        _check_adapter_type(recipe)
    if getattr(recipe, "rollout_weights", "unsharded") == "streamed":
        _check_streaming(recipe)
    if uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("FSDP 1 is not supported: launch with recipes/accelerate/fsdp2.yaml")
    if uses_fsdp() and recipe.quantization != "none":
        raise RecipeError(
            f"quantization: {recipe.quantization} weights are not divided by FSDP2; give --quantization "
            "none, or launch with recipes/accelerate/ddp.yaml or zero3.yaml"
        )


def _check_adapter_type(recipe: Any) -> None:
    """What is trained must lie in layers that are gathered when they are called; that was tested of LoRA."""
    kind = check_adapter_exists(recipe.adapter) if recipe.adapter else getattr(recipe, "adapter_type", "lora")
    if kind != "lora":
        raise RecipeError(
            f"adapter_type: {kind} was not tested with divided weights: launch with "
            "recipes/accelerate/ddp.yaml or zero2.yaml"
        )


def _check_streaming(recipe: Any) -> None:
    """While weights are gathered layer by layer, all processes must run the same passes."""
    if not uses_zero3():
        raise RecipeError("rollout_weights: streamed needs recipes/accelerate/zero3.yaml; leave it out")
    if recipe.training.get("eval_strategy", "no") != "no":
        raise RecipeError(
            "rollout_weights: streamed leaves no whole weights to caption held-out images with: use "
            "eval_strategy: no, and launch/evaluate.py afterwards"
        )
    if recipe.feature_cache not in (False, "off"):
        raise RecipeError("rollout_weights: streamed runs the vision tower in step: use feature_cache: off")


def check_adapter_on_devices(model: torch.nn.Module) -> None:
    """Refuse to sample with FSDP2 and an adapter of the vision part, which is scored outside of its root.

    Raises:
        RecipeError: naming what to use instead.
    """
    parts = ("vision_tower", "multi_modal_projector")
    if uses_fsdp() and any(
        p.requires_grad and any(x in n for x in parts) for n, p in model.named_parameters()
    ):
        raise RecipeError(
            "the adapter reaches the vision tower or the projector, which self-critical training under FSDP2 "
            "cannot score: launch with recipes/accelerate/ddp.yaml or zero3.yaml"
        )
