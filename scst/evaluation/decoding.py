"""Decoding presets, and the generation settings made from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scst.errors import RecipeError, shown

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Decoding:
    """How captions are decoded from the policy.

    Attributes:
        name: what reports call it.
        num_beams: hypotheses kept per image; 1 is no beam search.
        do_sample: draw tokens instead of taking the most probable.
        temperature: divides the logits when sampling.
        top_k: sample among the k most probable tokens; 0 keeps all.
        top_p: sample among the smallest set of tokens with this probability mass; 1 keeps all.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a caption; 0 allows all.
        early_stopping: beam search ends as soon as it has ``num_beams`` finished hypotheses.
        length_penalty: exponent on the length by which a hypothesis' log-probability is divided.
        max_new_tokens: length limit that belongs to the preset; None leaves it to the recipe.
    """

    name: str
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool = False
    length_penalty: float = 1.0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise RecipeError(f"decoding `{self.name}`: num_beams must be at least 1, got {self.num_beams}")
        if self.temperature <= 0:
            raise RecipeError(f"decoding `{self.name}`: temperature must be positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"decoding `{self.name}`: top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0 or self.no_repeat_ngram_size < 0:
            raise RecipeError(f"decoding `{self.name}`: top_k and no_repeat_ngram_size must not be negative")

    def __str__(self) -> str:
        """Name and the settings that differ from greedy, e.g. ``beam (num_beams=5)``."""
        plain = Decoding(self.name)
        changed = [f"{key}={value}" for key, value in vars(self).items() if value != getattr(plain, key)]
        return f"{self.name} ({', '.join(changed)})" if changed else self.name


_BEAM_SAMPLE = Decoding(
    "beam-sample",
    num_beams=4,
    do_sample=True,
    temperature=0.8,
    top_k=50,
    top_p=0.9,
    no_repeat_ngram_size=2,
    early_stopping=True,
)

DECODINGS: dict[str, Decoding] = {
    "greedy": Decoding("greedy"),
    "beam": Decoding("beam", num_beams=5),
    "nucleus": Decoding("nucleus", do_sample=True, top_p=0.95),
    "beam-sample": _BEAM_SAMPLE,
    # as published remote-sensing captioners were evaluated (recipes/reports): with their length limits
    "greedy-16": Decoding("greedy-16", max_new_tokens=16),
    "beam4-sample-16": replace(_BEAM_SAMPLE, name="beam4-sample-16", max_new_tokens=16),
    "nucleus-32": Decoding("nucleus-32", do_sample=True, top_p=0.95, max_new_tokens=32),
    "beam5": Decoding("beam5", num_beams=5),
}


def get_decoding(name: str | Decoding) -> Decoding:
    """The preset of that name (a ``Decoding`` is returned as it is).

    Raises:
        RecipeError: no preset has that name.
    """
    if isinstance(name, Decoding):
        return name
    if name not in DECODINGS:
        raise RecipeError(f"decoding: unknown preset {shown(name)}; known presets: {', '.join(DECODINGS)}")
    return DECODINGS[name]


def to_generation_config(
    decoding: Decoding,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    eos_token_id: int,
    pad_token_id: int,
    bos_token_id: int | None = None,
    suppress_tokens: Sequence[int] = (),
) -> GenerationConfig:
    """Settings for ``model.generate``, every one of them from the arguments.

    ``generate`` fills whatever is unset here from the checkpoint's own ``generation_config``; call it inside
    :func:`bare_generation_defaults`, which keeps those out.

    Args:
        decoding: the preset.
        max_new_tokens: length limit, end-of-sequence token included; a preset's own limit comes before it.
        min_new_tokens: the end-of-sequence token is impossible before this many tokens.
        eos_token_id, pad_token_id, bos_token_id: of the tokenizer.
        suppress_tokens: ids that are never generated.

    Raises:
        RecipeError: length limits that contradict each other.
    """
    from transformers import GenerationConfig  # imports torch: presets are checked without it

    max_new_tokens = decoding.max_new_tokens or max_new_tokens
    if not 0 <= min_new_tokens <= max_new_tokens or max_new_tokens < 1:
        raise RecipeError(
            "expected 0 <= min_new_tokens <= max_new_tokens and max_new_tokens >= 1, "
            f"got min_new_tokens={min_new_tokens}, max_new_tokens={max_new_tokens}"
        )
    settings: dict[str, int | float | list[int] | None] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": decoding.num_beams,
        "do_sample": decoding.do_sample,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        "repetition_penalty": 1.0,
        "use_cache": True,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "bos_token_id": bos_token_id,
    }
    if min_new_tokens:
        settings["min_new_tokens"] = min_new_tokens
    if suppress_tokens:
        settings["suppress_tokens"] = list(suppress_tokens)
    if decoding.do_sample:  # transformers warns about settings of sampling and beams where there are none
        settings |= {name: getattr(decoding, name) for name in ("temperature", "top_k", "top_p")}
    if decoding.num_beams > 1:
        settings |= {name: getattr(decoding, name) for name in ("early_stopping", "length_penalty")}
    return GenerationConfig(**settings)


@contextmanager
def bare_generation_defaults(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model and everything it wraps have no generation defaults of their own.

    transformers merges ``model.generation_config`` into every unset field of the settings it is given, and
    PEFT hands its own copy down to the base model; both are emptied and put back at the end.
    """
    from transformers import GenerationConfig  # imports torch

    holders = [vars(module) for module in model.modules() if "generation_config" in vars(module)]
    kept = [attributes["generation_config"] for attributes in holders]
    try:
        for attributes in holders:
            attributes["generation_config"] = GenerationConfig()
        yield
    finally:
        for attributes, config in zip(holders, kept, strict=True):
            attributes["generation_config"] = config
