"""A copy of the trainable weights, and the model with that copy in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scst.distributed.sharded_weights import is_sharded, local_shard, writable


class AdapterSnapshot:
    """A copy of the trainable weights: the SFT policy that SCST is compared with (``ref_policy``).

    Args:
        model: its trainable weights are copied now.
    """

    def __init__(self, model: torch.nn.Module):
        self._saved = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, ``model`` has the saved weights. Use under ``torch.no_grad()``."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: torch.nn.Module) -> None:
        parameters = {name: p for name, p in model.named_parameters() if name in self._saved}
        if not is_sharded(model):
            for name, parameter in parameters.items():
                parameter.data, self._saved[name] = self._saved[name], parameter.data
            return
        with torch.no_grad(), writable(list(parameters.values())):
            for name, parameter in parameters.items():
                now = parameter.detach().clone()
                parameter.data.copy_(
                    local_shard(self._saved[name], parameter)
                )  # unseen by a graph that waits
                self._saved[name] = now
