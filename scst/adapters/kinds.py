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
class PromptTuning:
    """Trained embeddings of virtual tokens in the prompt (Lester et al. 2021, arXiv:2104.08691).

    Attributes:
        num_virtual_tokens: in front of every instruction.
        init_text: the virtual tokens begin as the tokens of this text, repeated; None: of the prompt.
        random_init: begin as random words of the vocabulary instead.
    """

    num_virtual_tokens: int = 20
    init_text: str | None = None
    random_init: bool = False

    def __post_init__(self) -> None:
        _check_virtual_tokens(self.num_virtual_tokens, self.init_text, random_init=self.random_init)


@dataclass(frozen=True)
class PrefixTuning:
    """Trained keys and values in every decoder layer (Li and Liang 2021, arXiv:2101.00190).

    Attributes:
        num_virtual_tokens: keys and values per layer.
        init_text: they begin as those of the tokens of this text, repeated; None: of the prompt.
        random_init: begin as those of random words of the vocabulary instead.
    """

    num_virtual_tokens: int = 20
    init_text: str | None = None
    random_init: bool = False

    def __post_init__(self) -> None:
        _check_virtual_tokens(self.num_virtual_tokens, self.init_text, random_init=self.random_init)


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


def _check_virtual_tokens(count: int, init_text: str | None, *, random_init: bool) -> None:
    _require(count >= 1, "num_virtual_tokens", "1 or more", count)
    _require(not (random_init and init_text), "init_text", "None with random_init", init_text)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise RecipeError(f"adapter {name}: expected {expected}, got {got!r}")
