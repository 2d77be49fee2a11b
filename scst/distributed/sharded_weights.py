"""Weights that are divided among processes (DeepSpeed ZeRO-3, FSDP2), and the moments they are whole.

Training passes gather the weights layer by layer, and in each of those moments all processes meet. Captions
end at different lengths, so a rollout cannot work so: here the weights are whole, on every process, while it
samples, and nobody waits for anybody. Weights that are not divided are left alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of the model are divided among processes, be they whole at this moment or not."""
    return any(hasattr(p, "ds_id") for p in model.parameters()) or bool(_fsdp_modules(model))


def is_divided(weight: torch.Tensor) -> bool:
    """Whether this process holds a part of a weight only, at this moment."""
    if hasattr(weight, "ds_id"):
        return weight.ds_status.name != "AVAILABLE"
    return isinstance(weight, DTensor)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All weights, to call the model or any part of it in any way that needs no gradients.

    Collective at its beginning; inside, processes are on their own.
    """
    if not is_sharded(model):
        yield
        return
    with whole_weights(model, [model]), _without_hooks(model):
        yield


@contextmanager
def whole_weights(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """The weights of some modules of a model, for calls of ``part.forward`` that pass the hooks by.

    Collective, unless they are whole already.
    """
    weights = [p for p in dict.fromkeys(p for part in parts for p in part.parameters()) if is_divided(p)]
    if not weights:
        yield
    elif hasattr(weights[0], "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(weights):
            yield
    else:
        with _unsharded(_holders(model, weights)):
            yield


@contextmanager
def writable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters hold their whole values (ZeRO-3), and what is written to them in place stays.

    All processes must write the same.
    """
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def part_of(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """This process's part of a whole value, where FSDP2 divides the parameter; else the value."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


@contextmanager
def _unsharded(modules: Sequence[Any]) -> Iterator[None]:
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def _holders(model: nn.Module, weights: Sequence[torch.Tensor]) -> list[Any]:
    """The FSDP2 modules that hold some of the weights: the innermost one around each."""
    wanted, found = set(map(id, weights)), []
    for module in reversed(_fsdp_modules(model)):  # inner ones first
        held = {id(p) for p in module.parameters()} & wanted
        found += [module] if held else []
        wanted -= held
    return found


def _fsdp_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """No forward hooks inside: those of DeepSpeed and FSDP would gather and release what is whole."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    saved = [(module, name, getattr(module, name)) for module in model.modules() for name in names]
    for module, name, _ in saved:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, hooks in saved:
            setattr(module, name, hooks)
