"""From a recipe's ``rewards:`` list to functions: by name, by import path, or announced by a package."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rewards.cider import CiderDReward
from rewards.errors import RewardError

RewardFunction = Callable[..., Any]
ENTRY_POINT_GROUP = "scst.rewards"

REWARDS: dict[str, Callable[..., RewardFunction]] = {
    "cider_d": CiderDReward,
}
"""Name -> constructor. ``kwargs`` of the recipe go to the constructor."""


@dataclass(frozen=True)
class WeightedReward:
    """One entry of a recipe's ``rewards:`` list, ready to be called."""

    name: str
    function: RewardFunction
    weight: float = 1.0


def known_rewards() -> dict[str, Callable[..., RewardFunction]]:
    """The built-in rewards and those that installed packages announce in the group ``scst.rewards``."""
    announced = {point.name: _announced(point) for point in entry_points(group=ENTRY_POINT_GROUP)}
    return announced | REWARDS


def build_rewards(entries: Sequence[dict[str, Any]]) -> list[WeightedReward]:
    """Reward functions of a recipe.

    Args:
        entries: dicts with ``name`` or ``import_path`` ("package.module:attribute"), optional ``weight`` and
            ``kwargs``.

    Raises:
        RewardError: on an entry of another form, an unknown name or an import that fails; it names the entry.
    """
    if not entries:
        raise RewardError("`rewards` is empty: name at least one reward, e.g. [{name: cider_d, weight: 1.0}]")
    return [_build(entry) for entry in entries]


def _build(entry: dict[str, Any]) -> WeightedReward:
    if not isinstance(entry, dict):
        raise RewardError(f"a reward is a mapping with `name` or `import_path`, got {entry!r}")
    unknown = set(entry) - {"name", "import_path", "weight", "kwargs"}
    if unknown or not {"name", "import_path"} & set(entry):
        raise RewardError(
            f"a reward has `name` or `import_path`, and may have `weight` and `kwargs`; got {sorted(entry)}"
        )
    name = entry.get("name") or entry["import_path"].rpartition(":")[2]
    constructor = _imported(entry["import_path"]) if "import_path" in entry else _registered(entry["name"])
    kwargs = entry.get("kwargs") or {}
    try:
        function = constructor(**kwargs)
    except (TypeError, ValueError, OSError) as error:
        raise RewardError(f"reward {name!r} could not be built with {kwargs}: {error}") from error
    return WeightedReward(name, function, _weight(name, entry.get("weight", 1.0)))


def _weight(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RewardError(f"reward {name!r}: weight must be a finite number, got {value!r}")
    return float(value)


def _registered(name: str) -> Callable[..., RewardFunction]:
    rewards = known_rewards()
    if name not in rewards:
        raise RewardError(f"unknown reward {name!r}; known: {', '.join(sorted(rewards))}")
    return rewards[name]


def _imported(path: str) -> Callable[..., RewardFunction]:
    module_name, separator, attribute = path.partition(":")
    if not separator:
        raise RewardError(f"import_path must be 'package.module:attribute', got {path!r}")
    try:
        return _constructor(getattr(importlib.import_module(module_name), attribute))
    except (ImportError, AttributeError) as error:
        raise RewardError(f"import_path {path!r} cannot be imported: {error}") from error


def _announced(point: EntryPoint) -> Callable[..., RewardFunction]:
    """Loads the package only when its reward is asked for: a broken package must not break the others."""

    def build(**kwargs: Any) -> RewardFunction:
        try:
            target = point.load()
        except (ImportError, AttributeError) as error:
            raise RewardError(
                f"reward {point.name!r}: {point.value!r} cannot be imported: {error}"
            ) from error
        return _constructor(target)(**kwargs)

    return build


def _constructor(target: Any) -> Callable[..., RewardFunction]:
    """A class builds its reward; a function or a ready object is the reward, with ``kwargs`` bound to it."""
    if inspect.isclass(target):
        return target

    def bind(**kwargs: Any) -> RewardFunction:
        return _Bound(target, kwargs) if kwargs else target

    return bind


class _Bound:
    """A reward function with fixed keyword arguments; async functions stay async."""

    def __init__(self, function: RewardFunction, kwargs: dict[str, Any]):
        self.function, self.kwargs = function, kwargs
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, **columns: Any) -> Any:
        return self.function(**columns, **self.kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("setup", "save_state"):  # the optional parts of a reward object's contract
            return getattr(self.function, name)
        raise AttributeError(name)
