"""The arguments of one call of a reward function, and the check of its answer."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.errors import NamedRewardError

LOG_FUNCTIONS = ("log_metric", "log_extra")
PER_CALL = ("trainer_state", *LOG_FUNCTIONS)
"""Columns with one value per call; every other one has one value per completion."""


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

    def place(self, i: int) -> str:
        """Image and caption of a completion, for messages."""
        image_ids = self.columns.get("image_id")
        image = f"image {image_ids[i]!r}, " if image_ids is not None else ""
        return f"{image}caption {self.columns['completions'][i]!r}"

    def __str__(self) -> str:
        first = f", the first being {self.place(0)}" if len(self) else ""
        return f"given {len(self)} completions{first}"


def called(function: Callable[..., Any], columns: dict[str, Any]) -> Any:
    """The answer of a function, whether it is asynchronous or not."""
    answer = function(**columns)
    return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer


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
                f"reward {name!r} returned {value!r} for {batch.place(i)}; "
                "expected a finite number, or None for no opinion"
            )
    return [math.nan if value is None else float(value) for value in values]


def checked_length(name: str, answer: Any, batch: Batch) -> Sequence[Any]:
    """The answer as a list with one value per completion.

    Raises:
        RewardError: when it is none.
    """
    try:
        values = list(answer)
    except TypeError:
        raise NamedRewardError(
            f"reward {name!r} must return a list with one value per completion, got {answer!r} ({batch})"
        ) from None
    if len(values) != len(batch):
        raise NamedRewardError(
            f"reward {name!r} must return one value per completion ({len(batch)}), got {len(values)} "
            f"({batch})"
        )
    return values


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
