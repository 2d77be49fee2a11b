"""Several reward functions as one: each is called, checked and weighted; the sum is what is optimised."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import RewardError
from rewards.execution.batch import Batch
from rewards.execution.calls import RewardCalls
from rewards.moments import Moments
from rewards.registry import WeightedReward

STATE_NAME = "reward_statistics.json"

Gather = Callable[[list[float]], list[list[float]]]
"""Takes this process' numbers to those of every process, in the order of processes."""


@dataclass(frozen=True)
class MixedRewards:
    """Rewards of a list of completions.

    Attributes:
        total: weighted sum per completion; NaN where no reward function had an opinion.
        components: reward name -> the values that its function gave; NaN for "no opinion".
        contributions: reward name -> what it adds to ``total``: the weight times the values, normalised where
            the recipe says so; NaN for "no opinion".
    """

    total: list[float]
    components: dict[str, list[float]]
    contributions: dict[str, list[float]]


class RewardMixture:
    """Calls reward functions by the contract of TRL and adds them up.

    A reward with ``normalize`` contributes ``weight * (value - mean) / std`` with mean and population
    standard deviation of all values it gave since the run began, greedy captions and the present batch
    included. They are part of the state: a resumed run goes on with them. They move with every call, so with
    gradient accumulation the micro-batches of a step see slightly different ones.

    Args:
        rewards: the functions with names and weights.

    Raises:
        RewardError: when two rewards have one name, or one with ``workers`` cannot be sent to a process.
    """

    def __init__(self, rewards: Sequence[WeightedReward]):
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise RewardError(f"every reward of a mixture needs a name of its own, got {names}")
        self.rewards = list(rewards)
        self._calls = RewardCalls(rewards)
        self._moments = {reward.name: Moments() for reward in rewards if reward.normalize}

    def setup(self, dataset: Any) -> None:
        """Start the worker processes, and give every reward that wants it the training references, once.

        Raises:
            RewardError: naming the reward that could not be set up.
        """
        self._calls.setup(dataset)

    def close(self) -> None:
        """End the worker processes."""
        self._calls.close()

    def save(self, folder: str | Path) -> None:
        """Let every reward that has state (document frequencies) write it beside a checkpoint, the first one
        into the folder and others each into a folder of their name; add the statistics of those that are
        normalised."""
        self._calls.save_state(folder)
        if self._moments:
            path = Path(folder) / STATE_NAME
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(self.state_dict()), encoding="utf-8")
            os.replace(partial, path)

    def state_folders(self, folder: str | Path) -> dict[str, Path]:
        """Name of every reward with state -> where in the folder it writes."""
        return self._calls.state_folders(folder)

    def load(self, folder: str | Path) -> None:
        """Restore what :meth:`save` wrote; rewards with ``load_state(folder)`` read theirs.

        Raises:
            RewardError: when the statistics of a normalised reward are missing.
        """
        self._calls.load_state(folder)
        if not self._moments:
            return
        path = Path(folder) / STATE_NAME
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if missing := set(self._moments) - set(saved):
            raise RewardError(
                f"{folder} holds no statistics of the normalised rewards {sorted(missing)} ({STATE_NAME}): "
                "resume from a checkpoint of a run that normalised them, or leave `normalize` as it was"
            )
        self.load_state_dict(saved)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Statistics of the normalised rewards, by name."""
        return {name: dataclasses.asdict(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Go back to statistics that :meth:`state_dict` gave."""
        self._moments = {name: Moments(**state[name]) for name in self._moments}

    @property
    def moments(self):
        mixture = self

        class _M:
            def state_dict(self):
                return {n: dataclasses.asdict(m) for n, m in mixture._moments.items()}

            def load_state_dict(self, state):
                mixture._moments = {n: Moments(**state[n]) for n in mixture._moments}

        return _M()

    def write_tables(self, folder):
        self._calls.save_state(folder)

    def __call__(self, *, completions: Sequence[str], **columns: Any) -> MixedRewards:
        """Reward every completion.

        Args:
            completions: decoded captions.
            columns: ``prompts``, ``references``, ``image_id`` and every other column, one value per
                completion.

        Raises:
            RewardError: when a function raises, does not answer in time, returns another number of values, or
                a value that is no finite number; the message names the reward, the image and the caption.
        """
        return self.mixed(self.components(completions=completions, **columns))

    def components(self, *, completions: Sequence[str], **columns: Any) -> dict[str, list[float]]:
        """Reward name -> unweighted values, NaN for "no opinion"; the first half of a call.

        Raises:
            RewardError: as a whole call does.
        """
        return self._calls.values(Batch({"completions": completions, **columns}))

    def mean_reward(self, **columns: Any) -> float:
        """Mean weighted reward of completions, not normalised: comparable over a run, and changes no state.

        Args and errors as of a call.
        """
        components = self.components(**columns)
        weighted = [[reward.weight * value for value in components[reward.name]] for reward in self.rewards]
        totals = [_sum(values) for values in zip(*weighted, strict=True)]
        judged = [total for total in totals if not math.isnan(total)]
        return sum(judged) / len(judged) if judged else math.nan

    def mixed(
        self, components: dict[str, list[float]], gather: Gather = lambda numbers: [numbers]
    ) -> MixedRewards:
        """Normalise, weigh and add up; the second half of a call.

        Args:
            components: what the first half returned.
            gather: called where rewards are normalised, so that all processes have the same statistics; by
                default there is one process.
        """
        self._observe(components, gather)
        contributions = {
            reward.name: [reward.weight * value for value in self._normalised(reward.name, components)]
            for reward in self.rewards
        }
        total = [_sum(values) for values in zip(*contributions.values(), strict=True)]
        return MixedRewards(total, components, contributions)

    def _observe(self, components: dict[str, list[float]], gather: Gather) -> None:
        """Merge the batch of every process into the statistics, in the same order everywhere."""
        if not self._moments:
            return
        batch = [Moments.of(components[name]) for name in self._moments]
        numbers = [float(number) for moments in batch for number in dataclasses.astuple(moments)]
        for process in gather(numbers):
            for i, name in enumerate(self._moments):
                count, mean, squares = process[3 * i : 3 * i + 3]
                self._moments[name] = self._moments[name].merged(Moments(int(count), mean, squares))

    def _normalised(self, name: str, components: dict[str, list[float]]) -> list[float]:
        values = components[name]
        if name not in self._moments:
            return values
        return [self._moments[name].standardised(value) for value in values]


def _sum(contributions: Sequence[float]) -> float:
    """Sum over the functions that had an opinion; NaN when none had."""
    opinions = [value for value in contributions if not math.isnan(value)]
    return sum(opinions) if opinions else math.nan
