"""Settings of a new adapter, one class per type. Constructing one needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scst.errors import RecipeError

PEFT_TYPES = {
    "lora": "LORA",
    "prompt_tuning": "SCST_PROMPT",
    "prefix_tuning": "SCST_PREFIX",
    "bottleneck": "SCST_BOTTLENECK",
}
"""A recipe's ``adapter_type`` -> the name that PEFT saves it under."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: of the adapter.
        alpha: the adapter's output is multiplied by alpha / rank.
        targets: a name in ``scst.adapters.lora.LORA_TARGETS``, or a regular expression over module names.
        dropout: on the adapter's input, in supervised training only.
        variant: ``lora``, ``rslora`` or ``dora``.
        rank_pattern: ends of module names (regular expressions) -> another rank there, alpha / rank kept.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "decoder-attention"
    dropout: float = 0.0
    variant: str = "lora"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "rank", "1 or more", self.rank)
        _require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        variants = ("lora", "rslora", "dora")
        _require(self.variant in variants, "variant", f"one of {', '.join(variants)}", self.variant)


@dataclass(frozen=True)
class VirtualTokens:
    """What prompt tuning and prefix tuning have in common: trained vectors in the place of tokens.

    Attributes:
        num_virtual_tokens: in front of every instruction; of prefix tuning, in every decoder layer.
        init_text: they begin as the tokens of this text, repeated; None: of the prompt.
        random_init: they begin as random words of the vocabulary instead.
    """

    num_virtual_tokens: int = 20
    init_text: str | None = None
    random_init: bool = False

    def __post_init__(self) -> None:
        _require(self.num_virtual_tokens >= 1, "num_virtual_tokens", "1 or more", self.num_virtual_tokens)
        both = self.random_init and self.init_text
        _require(not both, "init_text", "None with random_init", self.init_text)


class PromptTuning(VirtualTokens):
    """Trained embeddings of virtual tokens in the prompt (Lester et al. 2021, arXiv:2104.08691)."""


class PrefixTuning(VirtualTokens):
    """Trained keys and values in every decoder layer (Li and Liang 2021, arXiv:2101.00190)."""


@dataclass(frozen=True)
class Bottleneck:
    """Small residual networks behind attention and MLP (Houlsby et al. 2019, arXiv:1902.00751).

    Attributes:
        size: width of the middle layer.
        places: ``attention+mlp``, ``attention`` or ``mlp``.
    """

    size: int = 64
    places: str = "attention+mlp"

    def __post_init__(self) -> None:
        _require(self.size >= 1, "size", "1 or more", self.size)
        places = ("attention+mlp", "attention", "mlp")
        _require(self.places in places, "places", f"one of {', '.join(places)}", self.places)


Adapter = LoRA | PromptTuning | PrefixTuning | Bottleneck


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise RecipeError(f"adapter {name}: expected {expected}, got {got!r}")
