"""Gathers weights that are sharded over processes (DeepSpeed ZeRO-3, FSDP2) for the time of a block.

Training passes gather the weights layer by layer, and every gather is collective: all processes must run the
same layers. In a rollout they cannot, because captions end at different lengths on each process. So a rollout
gathers all weights first and samples with full weights on every process. Weights that are not sharded are
left as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

_SEEN: WeakKeyDictionary[nn.Module, tuple[tuple[type, bool], bool]] = WeakKeyDictionary()
"""Model -> what marked it when its modules were looked at, and whether it was sharded."""


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of the model are sharded over processes, even if they are gathered at the moment.

    Looks at all modules once. Sharding a model changes its class (FSDP2) or marks its parameters (ZeRO-3):
    then it looks again.
    """
    marks = (type(model), hasattr(next(model.parameters(), None), "ds_id"))
    if _SEEN.get(model, (None, False))[0] != marks:
        sharded = any(hasattr(p, "ds_id") for p in model.parameters()) or bool(_fsdp_modules(model))
        _SEEN[model] = (marks, sharded)
    return _SEEN[model][1]


def is_shard(weight: torch.Tensor) -> bool:
    """Whether this process holds only a shard of a weight at the moment."""
    status = getattr(weight, "ds_status", None)  # an attribute that ZeRO-3 adds to its parameters
    return isinstance(weight, DTensor) if status is None else status.name != "AVAILABLE"


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all weights for the block, in which the model or any part of it can be called without gradients.

    Collective on entry; inside, calls are local to the process.
    """
    if not is_sharded(model):
        yield
        return
    with unsharded_weights(model, [model]), _without_hooks(model):
        yield


@contextmanager
def unsharded_weights(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Gather the weights of some modules of a model. In the block call ``part.forward``, which skips hooks.

    Collective, unless the weights are gathered already.
    """
    weights = [p for p in dict.fromkeys(p for part in parts for p in part.parameters()) if is_shard(p)]
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
    """Gather parameters (ZeRO-3) and keep in-place changes of them after the block. Collective.

    All processes must write the same values. FSDP2 parameters are not gathered: write to the local shard.
    """
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def local_shard(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """The part of a full value that belongs to this process's shard of an FSDP2 parameter; else the value."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def local_values(parameter: nn.Parameter) -> torch.Tensor:
    """The values of a parameter that this process holds: all of them, or those of its shard."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") and is_shard(parameter) else parameter


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
    """The FSDP2 modules that hold the weights: for each weight the innermost module around it."""
    wanted, found = set(map(id, weights)), []
    for module in reversed(_fsdp_modules(model)):  # inner ones first
        held = {id(p) for p in module.parameters()} & wanted
        found += [module] if held else []
        wanted -= held
    return found


def _fsdp_modules(model: nn.Module) -> list[Any]:  # both nn.Module and FSDPModule: no type says both
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Remove all forward hooks for the block: those of DeepSpeed and FSDP would reshard gathered weights."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    saved = [(module, name, getattr(module, name)) for module in model.modules() for name in names]
    for module, name, _ in saved:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, hooks in saved:
            setattr(module, name, hooks)
