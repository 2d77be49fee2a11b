"""What steps report to the log: statistics that add up exactly, however a step is cut into parts.

A step is made of micro-batches, a micro-batch of parts that fit into memory, and several processes work on
it. Each of them reports *statistics* and not finished numbers: a mean is reported as a sum and a count, and
becomes a number only when all parts have been added. So a logged number does not depend on the cut.
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
    """A number in the making."""

    @property
    def value(self) -> float:
        """The number, NaN when it is over nothing."""

    def __add__(self, other: Self) -> Self:
        """The statistic of both parts."""


@dataclass(frozen=True)
class Mean:
    """A mean as a sum and how many things it is over; also a ratio of two sums."""

    total: float
    count: float

    @classmethod
    def of(cls, values: torch.Tensor | Iterable[float], mask: torch.Tensor | None = None) -> Mean:
        """The mean of values where ``mask`` is True. NaN values ("no opinion") count nowhere."""
        numbers = values if isinstance(values, torch.Tensor) else torch.tensor(list(values))
        numbers = numbers.detach().cpu().double()  # a sum of many float32 numbers would lose digits
        counts = ~numbers.isnan() if mask is None else ~numbers.isnan() & mask.cpu()
        return cls(torch.where(counts, numbers, 0.0).sum().item(), counts.sum().item())

    @property
    def value(self) -> float:
        """Sum over count."""
        return self.total / self.count if self.count else math.nan

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True)
class Deviation:
    """A standard deviation (over the count) as the sums of the values and of their squares."""

    total: float
    squares: float
    count: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Deviation:
        """The deviation of values; NaN values count nowhere."""
        numbers = values.detach().cpu().double()
        numbers = numbers[~numbers.isnan()]
        return cls(numbers.sum().item(), numbers.square().sum().item(), numbers.numel())

    @property
    def value(self) -> float:
        """Square root of the mean square minus the squared mean."""
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
    """The share of the most frequent text among all texts of an optimizer step; the mean over steps."""

    steps: dict[int, Counter[str]]

    @classmethod
    def of(cls, texts: Iterable[str], step: int) -> MostCommon:
        """Texts of (a part of) a step."""
        return cls({step: Counter(texts)})

    @property
    def value(self) -> float:
        """Between 1 / number of texts and 1."""
        shares = [max(step.values()) / step.total() for step in self.steps.values() if step]
        return sum(shares) / len(shares) if shares else math.nan

    def __add__(self, other: MostCommon) -> MostCommon:
        steps = self.steps.keys() | other.steps.keys()
        nothing: Counter[str] = Counter()
        return MostCommon(
            {s: self.steps.get(s, nothing) + other.steps.get(s, nothing) for s in sorted(steps)}
        )


def merge(into: dict[str, Statistic], values: Mapping[str, Statistic]) -> dict[str, Statistic]:
    """Add statistics to those of the same name; ``into`` is changed and returned."""
    for name, value in values.items():
        into[name] = into[name] + value if name in into else value
    return into


@dataclass
class StepMetrics:
    """Statistics between two logs, and the time and memory of the phases of a step.

    Args:
        device: where the model is.

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
        """Add what a micro-batch reports.

        Args:
            values: statistics; a plain number is the mean of ``weight`` things, NaN of none.
            weight: 0 leaves plain numbers out.
        """
        numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
        merge(self._window, {name: v for name, v in values.items() if not isinstance(v, int | float)})
        means = {
            name: Mean(v * weight, weight) for name, v in numbers.items() if weight and not math.isnan(v)
        }
        merge(self._window, means)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Time and peak memory of what happens inside: ``seconds_<phase>`` and ``memory_gb_<phase>``."""
        with self.phases.measure(phase) as usage:
            yield
        self._step_seconds[phase] += usage.seconds
        self.add({f"memory_gb_{phase}": Peak(usage.peak_gb)})

    def count_images(self, num_images: int) -> None:
        """Images that this process trained on in a micro-batch; padding examples are none."""
        self._images += num_images

    def end_step(self) -> None:
        """The optimizer step is over; the time until :meth:`resume_clock` (log, evaluation, save) is none."""
        self.add({f"seconds_{phase}": seconds for phase, seconds in self._step_seconds.items()})
        self._step_seconds.clear()
        self._seconds += time.perf_counter() - self._began

    def resume_clock(self) -> None:
        """The next optimizer step begins here, with the loading of its images."""
        self._began = time.perf_counter()

    def flush(self) -> dict[str, float]:
        """Numbers since the last flush, over all processes, and ``images_per_s``. Collective.

        Not every process needs to have reported everything. ``images_per_s`` are the training images of all
        processes over the wall-clock time of their steps, loading and optimizer included.
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
