"""Averages gradients over processes after the last backward pass of a step instead of during it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import reduce


@contextmanager
def gradients_kept_on_error(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Restore the gradients when the block fails: an interrupted backward pass has already changed some."""
    before = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    except BaseException:
        for parameter, gradient in before:
            parameter.grad = gradient
        raise


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes, as DistributedDataParallel computes it.

    A parameter without a gradient counts as zero. All gradients travel in one message. Collective: every
    process must call it equally often, however many backward passes it made.
    """
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter).clone()
