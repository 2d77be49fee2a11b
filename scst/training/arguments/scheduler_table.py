"""What ``lr_scheduler_kwargs`` each scheduler takes: the signatures in the installed ``transformers``."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scst.errors import RecipeError, shown
from scst.training.arguments.library_source import members_of, parsed
from scst.training.arguments.value_types import Range, ValueType, type_of

_GIVEN_BY_TRAINER = {"self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
_NOT_NEGATIVE = Range(at_least=0)
_RANGES = {"factor": Range(above=0, below=1)}
_SHAPES = ("linear", "cosine", "1-sqrt")
_CHOICES = {
    "warmup_type": _SHAPES,
    "decay_type": _SHAPES,
    "mode": ("min", "max"),
    "threshold_mode": ("rel", "abs"),
}
_PLATEAU_TYPES = {"mode": "str", "threshold_mode": "str", "patience": "int", "cooldown": "int"}
_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
"""Arguments of torch's ReduceLROnPlateau, whose source is not looked at."""


@dataclass(frozen=True)
class SchedulerArguments:
    """What a scheduler takes.

    Attributes:
        types: name -> type of its values.
        needed: names without a default.
    """

    types: Mapping[str, ValueType]
    needed: frozenset[str] = frozenset()


def check_scheduler_arguments(scheduler: str, kwargs: Mapping[str, Any], learning_rate: float) -> None:
    """Refuse ``lr_scheduler_kwargs`` that the scheduler does not take.

    Args:
        scheduler: name of the scheduler.
        kwargs: its arguments.
        learning_rate: at the beginning.

    Raises:
        RecipeError: naming the argument.
    """
    place = "lr_scheduler_kwargs"
    arguments = scheduler_table()[scheduler]
    for name, value in kwargs.items():
        if name not in arguments.types:
            there = ", ".join(sorted(arguments.types)) or "none"
            raise RecipeError(f"{place}: {scheduler} has no {shown(name)}; it has {there}")
        try:
            arguments.types[name].convert(name, value)
        except RecipeError as error:
            raise RecipeError(f"{place}: {error}") from error
    if missing := sorted(arguments.needed - set(kwargs)):
        raise RecipeError(f"{place}: {scheduler} needs {', '.join(missing)}")
    if "min_lr_rate" in arguments.types and len({"min_lr", "min_lr_rate"} & set(kwargs)) != 1:
        raise RecipeError(f"{place}: {scheduler} needs one of min_lr and min_lr_rate")
    if scheduler == "polynomial" and float(kwargs.get("lr_end", 1e-7)) >= learning_rate:
        raise RecipeError(f"{place}: lr_end must be below learning_rate ({learning_rate:g})")


@functools.cache
def scheduler_table() -> Mapping[str, SchedulerArguments]:
    """The arguments of every scheduler by its name."""
    module = parsed("optimization")
    definitions = {
        node.name: node for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names = members_of(parsed("trainer_utils"), "SchedulerType")
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TYPE_TO_SCHEDULER_FUNCTION":
            for member, function in _items(node.value):
                name = names[ast.unparse(member).rpartition(".")[2]]
                found[name] = _arguments(definitions[ast.unparse(function)], definitions)
    return found


def _items(node: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Keys and values of a dictionary in the source."""
    if not isinstance(node, ast.Dict):
        return []
    return [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]


def _arguments(node: ast.AST, definitions: Mapping[str, ast.AST]) -> SchedulerArguments:
    """The arguments of a function; where it passes all of them on to a class, those of the class."""
    if isinstance(node, ast.ClassDef):
        node = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert isinstance(node, ast.FunctionDef)
    if node.args.kwarg is not None:
        called = [ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)]
        classes = [definitions[name] for name in called if isinstance(definitions.get(name), ast.ClassDef)]
        if classes:
            return _arguments(classes[0], definitions)
        return SchedulerArguments({name: _type(name, _PLATEAU_TYPES.get(name, "float")) for name in _PLATEAU})
    arguments, defaults = node.args.args, node.args.defaults
    first = len(arguments) - len(defaults)
    types, needed = {}, set()
    for number, argument in enumerate(arguments):
        if argument.arg in _GIVEN_BY_TRAINER:
            continue
        default = ast.literal_eval(defaults[number - first]) if number >= first else None
        annotation = ast.unparse(argument.annotation) if argument.annotation else type(default).__name__
        types[argument.arg] = _type(argument.arg, annotation)
        if number < first:
            needed.add(argument.arg)
    return SchedulerArguments(types, frozenset(needed))


def _type(name: str, annotation: str) -> ValueType:
    choices = _CHOICES.get(name, ())
    return type_of(annotation, range=_RANGES.get(name, _NOT_NEGATIVE), choices=choices)
