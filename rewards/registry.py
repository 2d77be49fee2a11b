"""Rewards by name, by import path, announced by a package, or as they are: functions and objects."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rewards.bad_ending import BadEndingPenalty
from rewards.bleu import BleuReward
from rewards.cider_d import CiderDReward
from rewards.clipscore import ClipScoreReward
from rewards.contract import OPTIONAL_METHODS, REPLACED_METHODS, RewardFunction, check_contract
from rewards.count_accuracy import CountAccuracyReward
from rewards.entity_recall import EntityRecallReward
from rewards.errors import RewardError, shown, told
from rewards.length import LengthReward
from rewards.meteor import MeteorReward
from rewards.repetition import RepetitionPenalty
from rewards.rouge_l import RougeLReward
from rewards.sentence_similarity import SentenceSimilarityReward

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "scst.rewards"

REWARDS: dict[str, Callable[..., RewardFunction]] = {
    "cider_d": CiderDReward,
    "bleu": BleuReward,
    "rouge_l": RougeLReward,
    "meteor": MeteorReward,
    "clipscore": ClipScoreReward,
    "sentence_similarity": SentenceSimilarityReward,
    "entity_recall": EntityRecallReward,
    "count_accuracy": CountAccuracyReward,
    "length": LengthReward,
    "repetition": RepetitionPenalty,
    "bad_ending": BadEndingPenalty,
}
"""Name -> constructor. ``kwargs`` of the recipe go to the constructor."""

ENTRY_KEYS = ("name", "import_path", "weight", "kwargs", "normalize", "workers", "timeout_s")


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a mixture.

    Attributes:
        name: unique within a mixture.
        function: the reward.
        weight: what its values are multiplied by, after normalisation.
        normalize: use its values minus their mean, over their standard deviation, both over the run.
        workers: processes it runs in; 0: in the training process.
        timeout_s: seconds that the step waits for one answer, above which the run stops.

    Raises:
        RewardError: when ``function`` breaks the contract (:func:`rewards.contract.check_contract`).
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    normalize: bool = False
    workers: int = 0
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        check_contract(self.name, self.function)


RewardEntry = str | Mapping[str, Any] | RewardFunction | WeightedReward
"""A registered name, an entry of a recipe, a function or object, or all settings together."""


def known_rewards() -> dict[str, Callable[..., RewardFunction]]:
    """The built-in rewards and those that installed packages announce in the group ``scst.rewards``."""
    announced = {point.name: _announced(point) for point in entry_points(group=ENTRY_POINT_GROUP)}
    return announced | REWARDS


def build_rewards(entries: Sequence[RewardEntry]) -> list[WeightedReward]:
    """Build rewards from the entries of a recipe or a notebook.

    Args:
        entries: each a registered name ("cider_d"); a function or object that can be called, named by its
            ``__name__``; a mapping with ``name`` or ``import_path`` ("package.module:attribute"), optional
            ``kwargs`` and what :class:`WeightedReward` has; or a :class:`WeightedReward`.

    Raises:
        RewardError: on an entry of another form, an unknown name, an import that fails or two rewards of one
            name; it names the entry.
    """
    if isinstance(entries, str | Mapping) or callable(entries):
        raise RewardError(f"`rewards` must be a list, got {entries!r}: put it into brackets")
    if not entries:
        raise RewardError("`rewards` is empty: name at least one reward, e.g. [{name: cider_d, weight: 1.0}]")
    rewards = [_build(entry) for entry in entries]
    names = [reward.name for reward in rewards]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RewardError(
            f"every reward needs a name of its own, got {names}: rename one {twice[0]!r}, in a recipe "
            "with both `name` and `import_path`, in Python with WeightedReward(name, function)"
        )
    return rewards


def _build(entry: RewardEntry) -> WeightedReward:
    if isinstance(entry, WeightedReward):
        return entry
    if isinstance(entry, str):  # --rewards cider_d,length
        entry = {"name": entry}
    if isinstance(entry, Mapping):
        return _from_recipe(entry)
    if callable(entry):
        function = entry() if inspect.isclass(entry) else entry
        return WeightedReward(_name_of(function), function)
    raise RewardError(
        f"a reward is a name, a function, or a mapping with `name` or `import_path`, got {entry!r}"
    )


def _from_recipe(entry: Mapping[str, Any]) -> WeightedReward:
    if not set(entry) <= set(ENTRY_KEYS) or not {"name", "import_path"} & set(entry):
        optional = ", ".join(f"`{key}`" for key in ENTRY_KEYS[2:])
        raise RewardError(f"a reward has `name` or `import_path`, and may have {optional}; got {list(entry)}")
    name = entry.get("name") or str(entry["import_path"]).rpartition(":")[2]
    constructor = _imported(entry["import_path"]) if "import_path" in entry else _registered(entry["name"])
    kwargs = entry.get("kwargs") or {}
    try:
        function = constructor(**kwargs)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {name!r} could not be built with {shown(kwargs)}: {told(error)}"
        ) from error
    return WeightedReward(name, function, **_settings(name, entry))


def _name_of(function: Any) -> str:
    """``__name__`` of the function (inside a partial, too), else the name of the class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _settings(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """``weight``, ``normalize``, ``workers`` and ``timeout_s`` where the entry has them."""
    rules = {
        "weight": (float, _is_number, "a finite number"),
        "normalize": (bool, lambda value: isinstance(value, bool), "true or false"),
        "workers": (int, lambda value: _is_number(value) and value >= 0 and value == int(value), "0 or more"),
        "timeout_s": (float, lambda value: _is_number(value) and value > 0, "seconds, above 0"),
    }
    for key, (_, holds, rule) in rules.items():
        if key in entry and not holds(entry[key]):
            raise RewardError(f"reward {name!r}: {key} must be {rule}, got {entry[key]!r}")
    return {key: kind(entry[key]) for key, (kind, _, _) in rules.items() if key in entry}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _registered(name: str) -> Callable[..., RewardFunction]:
    rewards = known_rewards()
    if name not in rewards:
        raise RewardError(f"unknown reward {name!r}; known: {', '.join(sorted(rewards))}")
    return rewards[name]


def _imported(path: str) -> Callable[..., RewardFunction]:
    module_name, separator, attribute = str(path).partition(":")
    if not separator or not module_name:
        raise RewardError(f"import_path must be 'package.module:attribute', got {path!r}")
    try:
        module = importlib.import_module(module_name)
        target = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # the module's own code runs here
        raise RewardError(f"import_path {path!r} cannot be imported: {told(error)}") from error
    # of everything a recipe can say, this and a cleaning step run code that is not part of the program
    logger.warning("import_path %r runs code of %s", path, getattr(module, "__file__", None) or module_name)
    return _constructor(target)


def _announced(point: EntryPoint) -> Callable[..., RewardFunction]:
    """Loads the package only when its reward is asked for: a broken package must not break the others."""

    def build(**kwargs: Any) -> RewardFunction:
        try:
            target = point.load()
        except (Exception, SystemExit) as error:  # the module's own code runs here
            raise RewardError(
                f"reward {point.name!r}: {point.value!r} cannot be imported: {told(error)}"
            ) from error
        return _constructor(target)(**kwargs)

    return build


def _constructor(target: Any) -> Callable[..., RewardFunction]:
    """What builds the reward: a class itself; for a function or an object, a binding of ``kwargs`` to it."""
    if inspect.isclass(target):
        return target  # type: ignore[return-value]  # a class is called

    def bind(**kwargs: Any) -> RewardFunction:
        return _Bound(target, **kwargs) if kwargs else target

    return bind


class _Bound(functools.partial):
    """A reward function with fixed keyword arguments; async functions stay async.

    Unlike a plain partial it passes on the optional parts of a reward object's contract, and a column of the
    dataset cannot silently take the place of an argument that the recipe fixes.
    """

    def __call__(self, **columns: Any) -> Any:
        return self.func(**columns, **self.keywords)

    def __getattr__(self, name: str) -> Any:
        if name in (*OPTIONAL_METHODS, *REPLACED_METHODS):  # the last are refused by name
            return getattr(self.func, name)
        raise AttributeError(name)
