"""The arguments of one call of a reward function, and the check of its answer."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rewards.errors import NamedRewardError, contained, shown

LOG_FUNCTIONS = ("log_metric", "log_extra")
PER_CALL = ("trainer_state", *LOG_FUNCTIONS)
"""Columns with one value per call; every other one has one value per completion."""
FLOAT32_MAX = 3.4028234663852886e38
"""Advantages are float32: a larger reward would be infinite there."""


@dataclass(frozen=True)
class Batch:
    """The keyword arguments of a reward call.

    Attributes:
        columns: ``completions`` (N captions) and every other column by name, N values each.
    """

    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["completions"])

    def part(self, start: int, stop: int) -> Batch:
        """The completions from ``start`` to ``stop`` with their columns."""
        return Batch(
            {
                name: value[start:stop] if name not in PER_CALL and value is not None else value
                for name, value in self.columns.items()
            }
        )

    def split(self, count: int) -> list[Batch]:
        """At most ``count`` parts of even size that are not empty, in order."""
        count = min(count, len(self))
        bounds = [i * len(self) // count for i in range(count + 1)] if count else []
        return [self.part(start, stop) for start, stop in itertools.pairwise(bounds)]

    def copy(self) -> Batch:
        """The same values in lists of its own: what one reward does to them, no other one sees."""
        return Batch({name: _own(name, value) for name, value in self.columns.items()})

    def place(self, i: int) -> str:
        """Image and caption of a completion, for messages."""
        image_ids = self.columns.get("image_id")
        image = f"image {shown(image_ids[i])}, " if image_ids is not None else ""
        return f"{image}caption {shown(self.columns['completions'][i])}"

    def __str__(self) -> str:
        first = f", the first being {self.place(0)}" if len(self) else ""
        return f"given {len(self)} completions{first}"


def _own(name: str, value: Any) -> Any:
    """A copy of a column, and of the lists in it (the references of an image)."""
    if name in PER_CALL:
        return copy.copy(value)
    if value is None:
        return None
    return [copy.copy(each) if isinstance(each, list | dict) else each for each in value]


def called(function: Callable[..., Any], batch: Batch) -> Any:
    """The answer of a function, whether it is asynchronous or not; see :func:`listed`."""
    with contained():
        answer = function(**batch.columns)
        answer = asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer
        return listed(answer, batch)


def listed(answer: Any, batch: Batch) -> Any:
    """An answer as a list where it is a sequence of numbers, at most one more of them than completions.

    Called where the function ran: an answer may be a generator, whose code is the reward's too. What is no
    sequence is returned as it is, for :func:`checked_length` to refuse.
    """
    if isinstance(answer, str | bytes | Mapping | Set) or getattr(answer, "ndim", 1) != 1:
        return answer
    if hasattr(answer, "tolist"):
        return answer.tolist()
    return list(itertools.islice(answer, len(batch) + 1)) if isinstance(answer, Iterable) else answer


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def checked_values(name: str, answer: Any, batch: Batch) -> list[float]:
    """The answer of a reward function as floats, NaN for None ("no opinion").

    Raises:
        RewardError: on another number of values, or on a value that is no finite number.
    """
    values = checked_length(name, answer, batch)
    for i, value in enumerate(values):
        if value is not None and not _is_finite(value):
            raise NamedRewardError(
                f"reward {name!r} returned {shown(value)} for {batch.place(i)}; "
                "expected a finite number (in float32), or None for no opinion"
            )
    return [math.nan if value is None else float(value) for value in values]


def checked_length(name: str, answer: Any, batch: Batch) -> Sequence[Any]:
    """The answer as a list with one value per completion.

    Raises:
        RewardError: when it is none.
    """
    values = listed(answer, batch)
    if not isinstance(values, list):
        shape = f" of shape {tuple(values.shape)}" if hasattr(values, "shape") else ""
        raise NamedRewardError(
            f"reward {name!r} must return a list with one value per completion, got "
            f"{type(values).__name__ + shape if shape else shown(values)} ({batch})"
        )
    if len(values) != len(batch):
        more = " or more" if len(values) > len(batch) else ""
        raise NamedRewardError(
            f"reward {name!r} must return one value per completion ({len(batch)}), got {len(values)}{more} "
            f"({batch})"
        )
    return values


def _is_finite(value: Any) -> bool:
    if getattr(value, "ndim", 0):
        return False
    try:
        return abs(float(value)) <= FLOAT32_MAX and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
