"""Bottleneck adapters: a small network with a residual path behind attention and MLP of decoder layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from scst.adapters.kinds import PEFT_TYPES
from scst.adapters.peft_methods import AdapterLayer, LayerConfig, LayerTuner, register
from scst.models.families.table import family_of
from scst.models.policy import base_model

PEFT_TYPE = PEFT_TYPES["bottleneck"]
PLACES: dict[str, str] = {"attention+mlp": "(self_attn|mlp)", "attention": "self_attn", "mlp": "mlp"}
"""Name -> what an adapter follows: both, as Houlsby et al. 2019 (arXiv:1902.00751), or the MLP alone, as
Pfeiffer et al. 2021 (arXiv:2005.00247)."""


@dataclass
class BottleneckConfig(LayerConfig):
    """Settings of bottleneck adapters.

    Attributes:
        width: of the model's hidden states.
        bottleneck_size: of the layer in the middle.
    """

    width: int = 0
    bottleneck_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckNetwork(nn.Module):
    """``x + up(gelu(down(x)))`` (Houlsby et al. 2019, section 2.1); ``up`` begins as zero."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        # the adapted model begins as the model itself; `down` is random, or no gradient would reach it
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., width) to the same shape and dtype."""
        # the adapter's weights are fp32, or the updates of a small learning rate would vanish in bf16
        change = self.up(nn.functional.gelu(self.down(states.to(self.down.weight.dtype))))
        return states + change.to(states.dtype)


class BottleneckLayer(AdapterLayer):
    """Attention or MLP with a bottleneck behind it, before the residual connection of the decoder layer."""

    adapter_layer_names = ("bottleneck_network",)

    def new_weights(self, config: BottleneckConfig) -> BottleneckNetwork:
        """A new bottleneck, whose output equals its input."""
        return BottleneckNetwork(config.width, config.bottleneck_size)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns; of attention, its weights are passed on as they are."""
        output = self.base_layer(*args, **kwargs)
        # attention returns (states, weights), an MLP states alone
        states, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for bottleneck in self.active_weights():
            states = bottleneck(states)
        return states if others is None else (states, *others)


class BottleneckTuner(LayerTuner):
    """The tuner that PEFT calls to wrap the layers."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer


register(BottleneckConfig, BottleneckTuner, PEFT_TYPE)


def add_bottleneck(model: nn.Module, *, size: int, places: str = "attention+mlp") -> PeftModel:
    """Wrap a frozen model with new bottleneck adapters in its decoder.

    Args:
        model: of any family.
        size: of the layer in the middle.
        places: a name in :data:`PLACES`.
    """
    inner = base_model(model)
    config = BottleneckConfig(
        task_type="CAUSAL_LM",
        target_modules=rf".*{re.escape(family_of(inner).names.decoder)}\..*\.{PLACES[places]}",
        width=inner.config.get_text_config().hidden_size,
        bottleneck_size=size,
    )
    return get_peft_model(model, config)
