"""Gradients of data-parallel training, averaged once per step instead of within the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


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


def average_gradients(parameters: Iterable[torch.nn.Parameter], accelerator: Any) -> None:
    """Mean of the gradients over all processes, in one message, as DistributedDataParallel would make it.

    A parameter without a gradient here counts as zero. Collective: every process calls it equally often,
    however many backward passes it made.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), reduction="mean")
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))
