"""Values to try every setting with: what is right for it, and what is wrong, from what it is declared to be.

The declarations are those of the recipe's dataclass and of the imported library, not those that the checks
have read for themselves; ranges are stated here once more, in words of numbers that must be refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import transformers

from scst.config.keys import default_of
from scst.config.recipes import RECIPES
from scst.training.arguments.argument_table import OWNED

TAKES_ZERO = {
    *(
        "split_seed",
        "seed",
        "min_new_tokens",
        "image_tokens",
        "validation_batch_size",
        "save_minutes",
        "top_k",
        "kl_weight",
    ),
    *("entropy_weight", "cross_entropy_weight", "scoring_batch_size", "head_chunk", "table_steps"),
    *("report_samples", "synonym_rare", "agreement_images", "contact_sheet", "lora_dropout", "seeds"),
    *("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "eval_delay", "data_seed", "dataloader_num_workers"),
}
"""Numbers that may be 0; all others must be above."""
BELOW_ONE = {"lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"}
"""Numbers that must be below 1."""
TOO_LONG = "x" * 300
"""No file has a name like this."""


def keys_of(stage: str) -> dict[str, Any]:
    """Key -> type of a recipe."""
    hints = typing.get_type_hints(RECIPES[stage])
    return {f.name: hints[f.name] for f in dataclasses.fields(RECIPES[stage]) if f.name != "training"}


def training_arguments() -> dict[str, Any]:
    """Name -> type of every training argument that a recipe may set."""
    hints = typing.get_type_hints(transformers.TrainingArguments)
    fields = [f.name for f in dataclasses.fields(transformers.TrainingArguments) if f.init]
    return {name: hints[name] for name in fields if name not in {*OWNED, "output_dir", "seed"}}


def kinds_of(declared: Any) -> tuple[Any, ...]:
    """The alternatives of a type: ``int | None`` has two."""
    if isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union:
        return tuple(kind for part in typing.get_args(declared) for kind in kinds_of(part))
    return (typing.get_origin(declared) or declared,)


def right_values(stage: str, name: str) -> list[Any]:
    """The default of a key, and every text that its declaration allows."""
    declared = next(f for f in dataclasses.fields(RECIPES[stage]) if f.name == name)
    default = default_of(RECIPES[stage], name)
    choices = declared.metadata["choices"] or ()
    return [default, *([[choice] for choice in choices] if isinstance(default, list) else choices)]


def wrong_values(name: str, declared: Any) -> Iterator[Any]:
    """Values of other kinds than declared, and numbers out of range."""
    kinds = kinds_of(declared)
    has_enum = any(isinstance(kind, type) and issubclass(kind, str) and kind is not str for kind in kinds)
    if type(None) not in kinds:
        yield None
    if not {int, float} & set(kinds):
        yield from (7, 0.25, float("nan"))
    else:
        yield from _wrong_numbers(name, kinds)
    if bool not in kinds and typing.Literal not in kinds:
        yield True
    if not {str, list} & set(kinds):
        yield from ("abc", "")
    elif str in kinds:
        yield from ("zero\0byte", "half \ud800", *(["nonsense"] if has_enum else []))
    if list not in kinds:
        yield from ([], ["a"], [[1]])
    if dict not in kinds:
        yield from ({}, {"a": 1})


def _wrong_numbers(name: str, kinds: tuple[Any, ...]) -> Iterator[Any]:
    yield from (-5, -0.5, float("nan"), float("inf"), float("-inf"), -(10**30))
    if str not in kinds:
        yield from ("abc", "1e", "0x")
    if int in kinds and float not in kinds:
        yield from (1.5, 10**30)
    if name not in TAKES_ZERO:
        yield 0
    if name in BELOW_ONE:
        yield from (1, 2.0)
