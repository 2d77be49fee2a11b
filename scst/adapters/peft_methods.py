"""Adapter methods as PEFT plug-ins: layers that wrap a module of the model, saved and loaded by PEFT.

PEFT's own prompt and prefix tuning live in the wrapper's ``forward``, which drops ``token_type_ids`` (caption
tokens would see later ones) and passes ``past_key_values`` (which gradient checkpointing drops). The forward
passes of :mod:`scst.models.policy` do not call that wrapper at all. PEFT has no bottleneck adapters, and the
library ``adapters`` (1.3.0) has no Gemma and requires transformers 4.57. So the methods of this package are
layers inside the model, as LoRA's are, and PEFT does the rest: freezing, saving, loading, disabling.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


@dataclass
class LayerConfig(PeftConfig):
    """Settings of an adapter made of layers.

    Attributes:
        target_modules: expression over the full names of the modules that are wrapped.
    """

    target_modules: Any = field(default=None)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the model, wrapped with trainable weights. Subclasses define the weights and ``forward``.

    Args:
        base_layer: what is wrapped; stays as it is.
        adapter_name: PEFT's name of the adapter, "default" throughout this project.
        config: of the adapter.
    """

    adapter_layer_names: tuple[str, ...]
    base_layer: Any
    merged_adapters: list[str]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any):
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Give the layer the weights of one more adapter, in float32."""
        weights = self.new_weights(config).to(_device_of(self.base_layer), torch.float32)
        self._weights()[adapter_name] = weights
        self.set_adapter([adapter_name])

    @abstractmethod
    def new_weights(self, config: Any) -> nn.Module:
        """The weights of an adapter."""

    def active_weights(self) -> list[Any]:
        """Weights of the adapters that are on."""
        # disabled for the comparison policy of the KL term; merged: the base layer holds the weights already
        if self.disable_adapters or self.merged:
            return []
        return [self._weights()[name] for name in self.active_adapters if name in self._weights()]

    def _weights(self) -> Any:
        return getattr(self, self.adapter_layer_names[0])


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class LayerTuner(BaseTuner):
    """Wraps the modules that a configuration names. Subclasses give ``prefix`` and ``tuner_layer_cls``."""

    tuner_layer_cls: Any

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
        else:
            layer = self.tuner_layer_cls(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, layer, target)


def register(config: type[LayerConfig], tuner: type[LayerTuner], peft_type: str) -> None:
    """Let PEFT make, save and load adapters of a type.

    ``peft.utils.register_peft_method`` takes the names of PEFT's own enumeration only; its tables take any.
    A PEFT that does not know the name refuses to load such an adapter, which is what it should do.
    """
    tables: tuple[tuple[dict[Any, Any], Any], ...] = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, tuner.prefix),
    )
    for table, entry in tables:
        table[peft_type] = entry
