"""Types and ranges of settings: one declaration per name, and the check of a value against it.

Recipe keys and the library's training arguments are both declared by annotations ("int | None"); what an
annotation cannot say (allowed names, ranges) stands beside it. Needs no torch.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scst.errors import RecipeError, shown

LARGEST_INT = 2**31 - 1
"""Of every whole number without a limit of its own: counts and sizes beyond it overflow somewhere below."""
LARGEST_SEED = 2**32 - 1
"""What numpy accepts."""


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have; NaN and infinity are in none.

    Attributes:
        at_least, at_most: bounds that belong to the range.
        above, below: bounds that do not.
        also: a number outside the bounds that has a meaning of its own.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number is in the range."""
        if number == self.also:
            return True
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """The range for a message: ``1 or more``, ``a number above 0 and up to 1``."""
        limits = (
            (self.at_least, "{} or more"),
            (self.above, "a number above {}"),
            (self.at_most, "at most {}"),
            (self.below, "below {}"),
        )
        text = " and ".join(phrase.format(f"{limit:.16g}") for limit, phrase in limits if limit is not None)
        also = f", or {self.also:g}" if self.also is not None else ""
        return (text or "a finite number") + also


ANY_NUMBER = Range()


@dataclass(frozen=True)
class ValueType:
    """What a setting may be.

    Attributes:
        kinds: of its value; ``type(None)`` where it may be left empty.
        choices: allowed texts; empty: all.
        range: of its numbers, and of those in its list or mapping.
        items: kinds of the elements of a list; empty: any.
        values: kinds of the values of a mapping; empty: any.
        literals: the only allowed values of the kinds they have (``Literal[False]``).
        is_path: texts are names of files or hub ids.
    """

    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()
    range: Range = ANY_NUMBER
    items: tuple[type, ...] = ()
    values: tuple[type, ...] = ()
    literals: tuple[object, ...] = ()
    is_path: bool = False

    def convert(self, name: str, value: Any) -> Any:
        """A value in its type: YAML reads 1e-5 as text, flags give lists as ``a,b``.

        Raises:
            RecipeError: when the value is not of the type; the message begins with ``name``.
        """
        converted = self._converted(name, value)
        for text in _texts(converted):
            _check_text(name, text)
            if self.is_path:
                _check_path(name, text)
        return converted

    def _converted(self, name: str, value: Any) -> Any:
        if value is None and type(None) in self.kinds:
            return None
        if value is False and "no" in self.choices and bool not in self.kinds:
            return "no"  # YAML reads a bare `no` as false
        if self.choices and not (isinstance(value, bool) and bool in self.kinds) and list not in self.kinds:
            chosen = [choice for choice in self.choices if choice == value]  # a plain text for an Enum, too
            if not chosen:
                raise RecipeError(f"{name}: must be one of {', '.join(self.choices)}; got {shown(value)}")
            return chosen[0]
        if list in self.kinds and isinstance(value, str) and str not in self.kinds:
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, bool | str | list | dict) and type(value) in self.kinds:
            return self._checked(name, value)
        if not isinstance(value, bool) and isinstance(value, int | float | str):
            for kind in (int, float):
                if kind in self.kinds and (number := _number(value, kind)) is not None:
                    return self._in_range(name, number)
        raise RecipeError(f"{name}: expected {self._described()}, got {shown(value)}")

    def _checked(self, name: str, value: Any) -> Any:
        """A text, list, mapping or boolean whose inside is of the declared kinds."""
        if self.literals and isinstance(value, bool) and value not in self.literals:
            raise RecipeError(f"{name}: expected {self._described()}, got {shown(value)}")
        if isinstance(value, list):
            return [self._element(name, item, self.items, "a list of") for item in value]
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise RecipeError(f"{name}: expected names that are texts, got {shown(wrong[0])}")
            return {key: self._element(name, each, self.values, "values:") for key, each in value.items()}
        return value

    def _element(self, name: str, item: Any, kinds: tuple[type, ...], what: str) -> Any:
        if not kinds or (type(item) in kinds and not isinstance(item, int | float)):
            return self._chosen(name, item)
        for kind in (int, float):
            if kind in kinds and not isinstance(item, bool) and (number := _number(item, kind)) is not None:
                return self._in_range(name, number)
        names = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
        raise RecipeError(f"{name}: expected {what} {names}, got {shown(item)} in it")

    def _chosen(self, name: str, item: Any) -> Any:
        if self.choices and item not in self.choices:
            raise RecipeError(f"{name}: unknown {shown(item)}; known are {', '.join(self.choices)}")
        return item

    def _in_range(self, name: str, number: int | float) -> int | float:
        if not self.range.holds(number):
            raise RecipeError(f"{name}: expected {self.range}, got {shown(number)}")
        if isinstance(number, int) and self.range.at_most is None and abs(number) > LARGEST_INT:
            raise RecipeError(f"{name}: expected at most {LARGEST_INT}, got {shown(number)}")
        return number

    def _described(self) -> str:
        kinds = [kind for kind in self.kinds if kind is not type(None)]
        names = ["false" if kind is bool and self.literals else kind.__name__ for kind in kinds]
        return " or ".join(names + ["nothing"] * (type(None) in self.kinds))


_NAMES: dict[type, str] = {str: "texts", dict: "mappings"}


def type_of(annotation: str, enums: Mapping[str, tuple[str, ...]] | None = None, **more: Any) -> ValueType:
    """The type that an annotation declares.

    Args:
        annotation: such as ``"str | None"``, ``"list[str]"`` or ``"SchedulerType | str"``.
        enums: name of an enumeration -> its values, which become the allowed texts.
        more: fields of :class:`ValueType` that the annotation does not tell.
    """
    found: dict[str, tuple[Any, ...]] = {"kinds": ()}
    for node in _alternatives(ast.parse(annotation, mode="eval").body):
        name = ast.unparse(node.value if isinstance(node, ast.Subscript) else node)
        inside = node.slice if isinstance(node, ast.Subscript) else None
        if name in (enums or {}):
            found["choices"] = (enums or {})[name]
        elif name == "Literal" and inside is not None:
            literal = ast.literal_eval(inside)
            found |= {"literals": (literal,), "kinds": (*found["kinds"], type(literal))}
        elif name in _KINDS:
            found["kinds"] += (_KINDS[name],)
            if inside is not None and name == "list":
                found |= _inside("items", inside, enums)
            elif isinstance(inside, ast.Tuple):
                found |= _inside("values", inside.elts[1], enums)
    return ValueType(**(found | more))


_KINDS: dict[str, type] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "dict": dict,
    "list": list,
    "None": type(None),
}


def _inside(
    field: str, node: ast.expr, enums: Mapping[str, tuple[str, ...]] | None
) -> dict[str, tuple[Any, ...]]:
    """What the brackets of a list or mapping say."""
    names = [ast.unparse(each) for each in _alternatives(node)]
    names = [name.partition("[")[0] for name in names]
    if chosen := [name for name in names if name in (enums or {})]:
        return {field: (str,), "choices": (enums or {})[chosen[0]]}
    return {field: tuple(_KINDS[name] for name in names if name in _KINDS)}


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """The parts of ``a | b | c``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _number(value: Any, kind: type) -> int | float | None:
    """The value as a number of that kind; None where it is none, or only nearly one."""
    if isinstance(value, int) and kind is int:
        return value
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if kind is float:
        return number
    return int(number) if math.isfinite(number) and number == int(number) else None


def _texts(value: Any) -> list[str]:
    """Every text in a value, names of mappings included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def _check_text(name: str, text: str) -> None:
    """Refuse texts that cannot be written to a file or passed to a program."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(f"{name}: expected text in UTF-8, got {shown(text)}") from error
    if "\0" in text:
        raise RecipeError(f"{name}: expected text without zero bytes, got {shown(text)}")


def _check_path(name: str, text: str) -> None:
    """Refuse names that no file system can hold; asking for them raises an error of the system."""
    parts = [os.fsencode(part) for part in text.split(os.sep)]
    if max(map(len, parts)) > 255 or len(os.fsencode(text)) > 4000:
        raise RecipeError(
            f"{name}: expected the name of a file or folder, got {shown(text)}, which is too long"
        )
