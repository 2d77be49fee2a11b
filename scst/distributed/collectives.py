"""Gradients that are averaged over processes after the last backward pass of a step and not within it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import reduce


@contextmanager
def gradients_kept_on_error(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Put the gradients back when what is inside fails: half a backward pass has added some of its own."""
    before = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    except BaseException:
        for parameter, gradient in before:
            parameter.grad = gradient
        raise


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Mean of the gradients over all processes, in one message, as DistributedDataParallel would make it.

    A parameter without a gradient here counts as zero. Collective: every process calls it equally often,
    however many backward passes it made.
    """
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter).clone()
