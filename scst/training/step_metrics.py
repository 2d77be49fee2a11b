"""Statistics that steps report to the log, and that add up exactly however a step is split.

A step consists of micro-batches, a micro-batch of parts that fit into memory, and several processes share it.
Each part reports *statistics* instead of finished numbers: a mean is reported as a sum and a count, and
becomes a number when all parts have been added. So a logged number does not depend on the split.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from scst.training.phase_meter import PhaseMeter


class Statistic(Protocol):
    """A quantity that is computed from parts: parts are added, then ``value`` is read."""

    @property
    def value(self) -> float:
        """The number over all parts; NaN when there is nothing to compute it from."""

    def __add__(self, other: Self) -> Self:
        """The statistic of both parts together."""


@dataclass(frozen=True)
class Mean:
    """A mean, kept as a sum and a count; also used for the ratio of two sums."""

    total: float
    count: float

    @classmethod
    def of(cls, values: torch.Tensor | Iterable[float], mask: torch.Tensor | None = None) -> Mean:
        """The mean of the values where ``mask`` is True. NaN values ("no opinion") are left out."""
        numbers = values if isinstance(values, torch.Tensor) else torch.tensor(list(values))
        numbers = numbers.detach().cpu().double()  # a sum of many float32 numbers would lose digits
        counts = ~numbers.isnan() if mask is None else ~numbers.isnan() & mask.cpu()
        return cls(torch.where(counts, numbers, 0.0).sum().item(), counts.sum().item())

    @property
    def value(self) -> float:
        """Sum divided by count."""
        return self.total / self.count if self.count else math.nan

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True)
class Deviation:
    """A population standard deviation, kept as a count, a sum and a sum of squares."""

    total: float
    squares: float
    count: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Deviation:
        """The deviation of the values; NaN values are left out."""
        numbers = values.detach().cpu().double()
        numbers = numbers[~numbers.isnan()]
        return cls(numbers.sum().item(), numbers.square().sum().item(), numbers.numel())

    @property
    def value(self) -> float:
        """Square root of (mean of squares minus square of the mean)."""
        if not self.count:
            return math.nan
        mean = self.total / self.count
        return math.sqrt(max(0.0, self.squares / self.count - mean * mean))

    def __add__(self, other: Deviation) -> Deviation:
        return Deviation(self.total + other.total, self.squares + other.squares, self.count + other.count)


@dataclass(frozen=True)
class Peak:
    """A maximum."""

    value: float

    def __add__(self, other: Peak) -> Peak:
        return Peak(max(self.value, other.value))


@dataclass(frozen=True)
class MostCommon:
    """The share of the most frequent text among all texts of an optimizer step, averaged over steps."""

    steps: dict[int, Counter[str]]

    @classmethod
    def of(cls, texts: Iterable[str], step: int) -> MostCommon:
        """The statistic of texts of a step or of a part of it."""
        return cls({step: Counter(texts)})

    @property
    def value(self) -> float:
        """The share, between 1 / (number of texts) and 1."""
        shares = [max(step.values()) / step.total() for step in self.steps.values() if step]
        return sum(shares) / len(shares) if shares else math.nan

    def __add__(self, other: MostCommon) -> MostCommon:
        steps = self.steps.keys() | other.steps.keys()
        nothing: Counter[str] = Counter()
        return MostCommon(
            {s: self.steps.get(s, nothing) + other.steps.get(s, nothing) for s in sorted(steps)}
        )


def merge(into: dict[str, Statistic], values: Mapping[str, Statistic]) -> dict[str, Statistic]:
    """Add statistics to those of the same name in ``into``, which is changed and returned."""
    for name, value in values.items():
        into[name] = into[name] + value if name in into else value
    return into


@dataclass
class StepMetrics:
    """Collects the statistics between two logs, and the time and memory of the phases of a step.

    Args:
        device: the model's device.

    Attributes:
        phases: time and peak memory by phase since training began.
    """

    device: torch.device
    phases: PhaseMeter = field(init=False)

    def __post_init__(self) -> None:
        self.phases = PhaseMeter(self.device)
        self._window: dict[str, Statistic] = {}
        self._step_seconds: dict[str, float] = defaultdict(float)
        self._images = 0
        self._seconds = 0.0
        self._began = time.perf_counter()

    def add(self, values: Mapping[str, float | Statistic], weight: float = 1.0) -> None:
        """Add the numbers and statistics of a micro-batch.

        Args:
            values: by name, a statistic or a plain number. A plain number is a mean over ``weight`` items;
                NaN is left out.
            weight: number of items behind every plain number; 0 leaves them out.
        """
        numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
        merge(self._window, {name: v for name, v in values.items() if not isinstance(v, int | float)})
        means = {
            name: Mean(v * weight, weight) for name, v in numbers.items() if weight and not math.isnan(v)
        }
        merge(self._window, means)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Measure the block as a phase; adds ``seconds_<phase>`` and ``memory_gb_<phase>`` to the log."""
        with self.phases.measure(phase) as usage:
            yield
        self._step_seconds[phase] += usage.seconds
        self.add({f"memory_gb_{phase}": Peak(usage.peak_gb)})

    def count_images(self, num_images: int) -> None:
        """Count the images that this process trained on in a micro-batch, without padding examples."""
        self._images += num_images

    def end_step(self) -> None:
        """End the step. The time until :meth:`resume_clock` (log, evaluation, save) is not counted."""
        self.add({f"seconds_{phase}": seconds for phase, seconds in self._step_seconds.items()})
        self._step_seconds.clear()
        self._seconds += time.perf_counter() - self._began

    def resume_clock(self) -> None:
        """Start the clock of the next optimizer step, which begins with the loading of its images."""
        self._began = time.perf_counter()

    def flush(self) -> dict[str, float]:
        """Return the numbers since the last flush, over all processes, and ``images_per_s``. Collective.

        A process may lack statistics that others have reported. ``images_per_s`` is the number of training
        images of all processes divided by the wall-clock time of their steps, loading and optimizer included.
        """
        mine = (self._window, self._images, self._seconds)
        everyone = gather_object([mine]) if PartialState().num_processes > 1 else [mine]
        window: dict[str, Statistic] = {}
        for statistics, _, _ in everyone:
            merge(window, statistics)
        self._window, self._images, self._seconds = {}, 0, 0.0
        numbers = {name: statistic.value for name, statistic in window.items()}
        images = sum(count for _, count, _ in everyone)
        seconds = sum(seconds for _, _, seconds in everyone) / len(everyone)
        if images and seconds:
            numbers["images_per_s"] = images / seconds
        return {name: number for name, number in numbers.items() if not math.isnan(number)}
