"""Several reward functions as one: each is called, checked and weighted; the sum is what is optimised."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import RewardError
from rewards.registry import WeightedReward


@dataclass(frozen=True)
class MixedRewards:
    """Rewards of a list of completions.

    Attributes:
        total: weighted sum per completion; NaN where no reward function had an opinion.
        components: reward name -> its unweighted values; NaN for "no opinion".
    """

    total: list[float]
    components: dict[str, list[float]]


class RewardMixture:
    """Calls reward functions by the contract of TRL and adds them up.

    Args:
        rewards: the functions with names and weights.
    """

    def __init__(self, rewards: Sequence[WeightedReward]):
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise RewardError(f"every reward of a mixture needs a name of its own, got {names}")
        self.rewards = list(rewards)

    def setup(self, dataset: Any) -> None:
        """Give every reward that wants it the training references, once."""
        for reward in self.rewards:
            if hasattr(reward.function, "setup"):
                reward.function.setup(dataset)

    def save(self, folder: str | Path) -> None:
        """Let every reward that has state (document frequencies) write it beside a checkpoint."""
        for reward in self.rewards:
            if hasattr(reward.function, "save_state"):
                reward.function.save_state(folder)

    def __call__(self, *, completions: Sequence[str], **columns: Any) -> MixedRewards:
        """Reward every completion.

        Args:
            completions: decoded captions.
            columns: ``prompts``, ``references``, ``image_id`` and every other column, one value per
                completion.

        Raises:
            RewardError: when a function raises, returns another number of values, or a value that is no
                finite number; the message names the reward, the image and the caption (of a function that
                raises: the first of the batch it was given).
        """
        columns = {"completions": completions, **columns}
        answers = self._answers(columns)
        components = {
            reward.name: _checked(reward.name, answer, completions, columns.get("image_id"))
            for reward, answer in zip(self.rewards, answers, strict=True)
        }
        weights = [reward.weight for reward in self.rewards]
        total = [_weighted_sum(values, weights) for values in zip(*components.values(), strict=True)]
        return MixedRewards(total, components)

    def _answers(self, columns: dict[str, Any]) -> list[Any]:
        """Call all functions; asynchronous ones run together."""
        answers = []
        for reward in self.rewards:
            try:
                answers.append(reward.function(**columns))
            except Exception as error:
                raise _raised(reward.name, error, columns) from error
        waiting = [i for i, answer in enumerate(answers) if inspect.isawaitable(answer)]
        for i, result in zip(waiting, _gathered([answers[i] for i in waiting]), strict=True):
            if isinstance(result, Exception):
                raise _raised(self.rewards[i].name, result, columns) from result
            answers[i] = result
        return answers


def _gathered(waiting: list[Awaitable[Any]]) -> list[Any]:
    """Results or exceptions of awaitables that run together, inside a notebook's event loop too."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    if not waiting:
        return []
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, gather()).result()


def _raised(name: str, error: Exception, columns: dict[str, Any]) -> RewardError:
    completions, image_ids = columns["completions"], columns.get("image_id")
    batch = f"{len(completions)} completions"
    if completions:
        batch += f", the first being{_place(0, completions, image_ids)}"
    return RewardError(f"reward {name!r} raised {type(error).__name__}: {error} (given {batch})")


def _place(i: int, completions: Sequence[str], image_ids: Sequence[str] | None) -> str:
    image = f" image {image_ids[i]!r}," if image_ids is not None else ""
    return f"{image} caption {completions[i]!r}"


def _checked(
    name: str, values: Any, completions: Sequence[str], image_ids: Sequence[str] | None
) -> list[float]:
    """The values as floats, NaN for None."""
    try:
        values = list(values)
    except TypeError:
        raise RewardError(
            f"reward {name!r} must return a list with one value per completion, got {values!r}"
        ) from None
    if len(values) != len(completions):
        raise RewardError(
            f"reward {name!r} must return one value per completion ({len(completions)}), got {len(values)}"
        )
    for i, value in enumerate(values):
        if value is not None and not _is_finite(value):
            raise RewardError(
                f"reward {name!r} returned {value!r} for{_place(i, completions, image_ids)}; "
                "expected a finite number, or None for no opinion"
            )
    return [math.nan if value is None else float(value) for value in values]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _weighted_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    """Sum over the functions that had an opinion; NaN when none had."""
    opinions = [w * v for v, w in zip(values, weights, strict=True) if not math.isnan(v)]
    return sum(opinions) if opinions else math.nan
