"""Running mean and standard deviation of a reward."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
