"""Prompt tuning: reserved tokens of the vocabulary, placed in the prompt, with trained embeddings.

Such tokens (of PaliGemma ``<seg000>`` ... and ``<loc0000>`` ..., of Gemma 3 ``<unused0>`` ...) never occur in
captions. They are ordinary prompt tokens, so forward passes, masks and caches need no changes.
PEFT's ``TrainableTokens`` would copy the whole embedding matrix (1 GB) at every call and train the tied
language-model head too; here the trained rows are looked up beside the matrix and the head stays frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from scst.adapters.kinds import PEFT_TYPES
from scst.adapters.peft_methods import AdapterLayer, LayerConfig, LayerTuner, register
from scst.errors import RecipeError
from scst.models.families.table import family_of, family_of_processor
from scst.models.policy import base_model
from scst.models.prompts import PromptEncoder

PEFT_TYPE = PEFT_TYPES["prompt_tuning"]


@dataclass
class PromptConfig(LayerConfig):
    """Settings of virtual tokens.

    Attributes:
        virtual_tokens: the N reserved tokens whose embeddings are trained, in the order of the prompt.
        token_ids: their numbers.
        width: of an embedding.
    """

    virtual_tokens: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    width: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class VirtualTokens(nn.Module):
    """Embeddings (N, D) of some tokens, on the scale of the embedding matrix.

    Args:
        token_ids: N token numbers.
        width: D.
    """

    def __init__(self, token_ids: Sequence[int], width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(token_ids), width))
        self.token_ids: torch.Tensor
        # follows the model to its device, but is saved in the adapter's settings and not among its weights
        self.register_buffer("token_ids", torch.tensor(token_ids), persistent=False)

    def forward(self, ids: torch.Tensor, embeddings: torch.Tensor, scale: Any) -> torch.Tensor:
        """``embeddings`` (..., D) of ``ids`` (...), replaced by the trained ones at virtual tokens."""
        places = ids.unsqueeze(-1).eq(self.token_ids)  # (..., N)
        # Where no virtual token stands argmax is 0: that row is looked up in vain, and `where` drops it. A
        # lookup of fixed shape needs no synchronisation with the GPU, unlike indexing by a boolean mask.
        rows = nn.functional.embedding(places.int().argmax(-1), self.weight)
        return torch.where(places.any(-1, keepdim=True), (rows * scale).to(embeddings.dtype), embeddings)


class PromptLayer(AdapterLayer):
    """The embedding matrix, with trained rows in place of those of the virtual tokens."""

    adapter_layer_names = ("virtual_prompt_rows",)

    def new_weights(self, config: PromptConfig) -> VirtualTokens:
        """Empty rows, to be filled by :func:`add_prompt_tuning` or from a checkpoint."""
        return VirtualTokens(config.token_ids, config.width)

    def update_layer(self, adapter_name: str, config: PromptConfig) -> None:
        """Add the weights, but keep token ids integers: the base class casts buffers to float32."""
        super().update_layer(adapter_name, config)
        rows = self._weights()[adapter_name]
        rows.token_ids = torch.tensor(config.token_ids, device=rows.weight.device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(..., D) embeddings of ids (...)."""
        embeddings = self.base_layer(ids)
        for rows in self.active_weights():
            embeddings = rows(ids, embeddings, self._scale())
        return embeddings

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the rows into the matrix, and so into a language-model head that is tied to it."""
        for rows in self.active_weights():
            table = self.base_layer.weight.data
            table[rows.token_ids] = rows.weight.data.to(table.dtype)
        self.merged_adapters = list(self.active_adapters)

    def _scale(self) -> Any:
        """The factor that the embedding layer applies to its rows, in versions of transformers with one."""
        return getattr(self.base_layer, "embed_scale", 1.0)


class PromptTuner(LayerTuner):
    """The tuner that PEFT calls to wrap the layers."""

    prefix = "virtual_prompt_"
    tuner_layer_cls = PromptLayer

    def _get_tied_target_modules(self, *args: Any, **kwargs: Any) -> list[str]:
        return []

    def _check_tied_modules(self, *args: Any, **kwargs: Any) -> None:
        """No warning of PEFT is needed: the head is tied to the frozen matrix, not to the trained rows."""


register(PromptConfig, PromptTuner, PEFT_TYPE)


def add_prompt_tuning(model: nn.Module, processor: Any, token_ids: torch.Tensor) -> PeftModel:
    """Wrap a frozen model with N new virtual tokens (Lester et al. 2021, arXiv:2104.08691).

    Prompts must contain them: encode with :func:`encoder_for`.

    Args:
        model: of any family.
        processor: its processor.
        token_ids: (N,) tokens with whose embeddings the virtual tokens are initialised.

    Raises:
        RecipeError: when the vocabulary has fewer reserved tokens.
    """
    names, part_names = reserved_tokens(processor, len(token_ids)), family_of(base_model(model)).names
    table = base_model(model).get_input_embeddings().weight
    config = PromptConfig(
        task_type="CAUSAL_LM",
        # a list: of an expression PEFT would save the whole matrix, too
        target_modules=[f"{part_names.decoder.rpartition('.')[2]}.embed_tokens"],
        virtual_tokens=names,
        token_ids=processor.tokenizer.convert_tokens_to_ids(names),
        width=table.shape[1],
    )
    # read before the matrix is wrapped; trained in fp32, whatever the model's precision
    first = table.detach()[token_ids.to(table.device)].float()
    adapted = get_peft_model(model, config)
    rows = next(module for module in adapted.modules() if isinstance(module, VirtualTokens))
    rows.weight.data.copy_(first)
    return adapted


def reserved_tokens(processor: Any, count: int) -> list[str]:
    """The first ``count`` tokens of the vocabulary that no caption uses.

    Raises:
        RecipeError: when it has fewer.
    """
    vocabulary = processor.tokenizer.get_vocab()
    family = family_of_processor(processor)
    present = [token for token in family.reserved_tokens if token in vocabulary]
    if count > len(present):
        raise RecipeError(
            f"num_virtual_tokens: the vocabulary has {len(present)} reserved tokens"
            + (f" ({present[0]}, ...)" if present else " that prompt tuning could train")
            + f", but {count} are asked for"
            + ("" if present else "; take another adapter_type, e.g. prefix_tuning")
        )
    return present[:count]


def virtual_tokens_of(model: nn.Module) -> list[str]:
    """The virtual tokens of a model's adapter, in the order of the prompt; none where it has none."""
    configs = getattr(model, "peft_config", None) or {}
    return [token for c in configs.values() if isinstance(c, PromptConfig) for token in c.virtual_tokens]


def encoder_for(model: nn.Module, processor: Any) -> PromptEncoder:
    """The encoder of a model's prompts: with the virtual tokens of its adapter, if it has any.

    Args:
        model: with or without adapter.
        processor: its processor; an encoder is returned as it is.

    Raises:
        RecipeError: when the processor's vocabulary is not the one the adapter was trained with.
    """
    if isinstance(processor, PromptEncoder):
        return processor
    configs = (getattr(model, "peft_config", None) or {}).values()
    tokens = virtual_tokens_of(model)
    ids = [i for config in configs if isinstance(config, PromptConfig) for i in config.token_ids]
    if processor.tokenizer.convert_tokens_to_ids(tokens) != ids:
        raise RecipeError(
            f"adapter: its virtual tokens {tokens[0]}, ... have other numbers in this model's vocabulary: "
            "give the base model that it was trained on"
        )
    return PromptEncoder(processor, "".join(tokens))
