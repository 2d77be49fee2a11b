"""Several reward functions as one: each is called, checked and weighted; the sum is what is optimised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.execution.batch import Batch
from rewards.execution.calls import RewardCalls
from rewards.moments import Gather, RewardMoments
from rewards.registry import RewardEntry, build_rewards


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
    included. They are part of the state: a resumed run continues with them. They move with every call, so
    with gradient accumulation the micro-batches of a step see slightly different ones.

    Args:
        rewards: names, functions, entries of a recipe or :class:`WeightedReward`, in any combination; see
            :func:`rewards.registry.build_rewards`.

    Attributes:
        rewards: the :class:`WeightedReward` list.
        moments: statistics of the normalised rewards, with a state of their own.
        calls: the functions where they run, with the state of each that has one.

    Raises:
        RewardError: when a reward cannot be built, two have one name, or one with ``workers`` cannot be sent
            to a process.
    """

    def __init__(self, rewards: Sequence[RewardEntry]):
        self.rewards = build_rewards(rewards)
        self.moments = RewardMoments(reward.name for reward in self.rewards if reward.normalize)
        self.calls = RewardCalls(self.rewards)

    def setup(self, dataset: Any) -> None:
        """Start the worker processes, and give every reward that wants it the training references, once.

        Args:
            dataset: columns ``references`` and ``image_id`` of the training images; a dict of lists will do.

        Raises:
            RewardError: naming the reward that could not be set up.
        """
        self.calls.setup(dataset)

    def close(self) -> None:
        """End the worker processes, and what rewards have started themselves."""
        self.calls.close()

    def state_dict(self) -> dict[str, Any]:
        """``moments`` of the normalised rewards, and ``rewards``: the state of each that has one, by name."""
        return {"moments": self.moments.state_dict(), "rewards": self.calls.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; after :meth:`setup`.

        Raises:
            RewardError: a statistic or a state is missing, or a reward refuses its state: dataset, split or
                end-of-sequence policy have changed.
        """
        self.calls.load_state_dict(state["rewards"])
        self.moments.load_state_dict(state["moments"])

    def write_tables(self, folder: str | Path) -> None:
        """Write the document frequencies of the rewards that have them: of the first one into the folder
        (``document_frequencies.json``), of others each into a folder of their name within."""
        self.calls.write_tables(Path(folder))

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
        return self.calls.values(Batch({"completions": completions, **columns}))

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
        self.moments.observe(components, gather)
        contributions = {
            reward.name: [
                reward.weight * value
                for value in self.moments.normalised(reward.name, components[reward.name])
            ]
            for reward in self.rewards
        }
        total = [_sum(values) for values in zip(*contributions.values(), strict=True)]
        return MixedRewards(total, components, contributions)


def _sum(contributions: Sequence[float]) -> float:
    """Sum over the functions that had an opinion; NaN when none had."""
    opinions = [value for value in contributions if not math.isnan(value)]
    return sum(opinions) if opinions else math.nan
