"""Running mean and standard deviation of rewards, for those that are normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewards.errors import RewardError

Gather = Callable[[list[float]], list[list[float]]]
"""Maps the numbers of this process to those of every process, in the order of processes."""

ROUNDING = 1e-9
"""Numbers whose standard deviation is below this share of their mean are equal but for rounding."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers seen so far.

    Merged by Chan, Golub and LeVeque 1979 (Stanford STAN-CS-79-773, equation 2.1), batch by batch: no number
    is kept, and no digits are lost to a large mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """Moments of a batch; NaN ("no opinion") does not count."""
        numbers = [value for value in values if not math.isnan(value)]
        if not numbers:
            return cls()
        mean = math.fsum(numbers) / len(numbers)
        return cls(len(numbers), mean, math.fsum((number - mean) ** 2 for number in numbers))

    def merged(self, other: Moments) -> Moments:
        """Moments of both sets of numbers."""
        count = self.count + other.count
        if not count:
            return self
        distance = other.mean - self.mean
        mean = self.mean + distance * (other.count / count)
        squares = self.squares + other.squares + distance**2 * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def std(self) -> float:
        """Standard deviation of the numbers seen (divided by their count)."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def standardised(self, value: float) -> float:
        """``(value - mean) / std``; 0 while all numbers were equal; NaN stays NaN."""
        if math.isnan(value):
            return value
        return (value - self.mean) / self.std if self.std > ROUNDING * abs(self.mean) else 0.0


class RewardMoments:
    """Moments of every normalised reward, over all processes and since the run began.

    Cheap to copy with :meth:`state_dict`: a trainer takes one after every step, and puts it back when a step
    fails half way.

    Args:
        names: of the normalised rewards.
    """

    def __init__(self, names: Iterable[str]):
        self._moments = {name: Moments() for name in names}

    def observe(self, components: Mapping[str, Sequence[float]], gather: Gather) -> None:
        """Merge the batch of every process into the moments, in the same order everywhere.

        Args:
            components: reward name -> values of this process; NaN does not count.
            gather: called once where rewards are normalised, else never.
        """
        if not self._moments:
            return
        batch = [Moments.of(components[name]) for name in self._moments]
        numbers = [float(number) for moments in batch for number in dataclasses.astuple(moments)]
        for process in gather(numbers):
            for i, name in enumerate(self._moments):
                count, mean, squares = process[3 * i : 3 * i + 3]
                self._moments[name] = self._moments[name].merged(Moments(int(count), mean, squares))

    def normalised(self, name: str, values: Sequence[float]) -> Sequence[float]:
        """``(value - mean) / std`` of every value; unchanged where the reward is not normalised."""
        moments = self._moments.get(name)
        return values if moments is None else [moments.standardised(value) for value in values]

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Reward name -> ``count``, ``mean`` and ``squares``."""
        return {name: dataclasses.asdict(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go back to what :meth:`state_dict` gave.

        Raises:
            RewardError: when the moments of a normalised reward are missing; nothing is changed then.
        """
        if missing := sorted(set(self._moments) - set(state)):
            raise RewardError(
                f"the checkpoint holds no statistics of the normalised rewards {missing}: resume from a "
                "checkpoint of a run that normalised them, or leave `normalize` as it was"
            )
        self._moments = {
            name: Moments(int(m["count"]), m["mean"], m["squares"])
            for name, m in ((name, state[name]) for name in self._moments)
        }
