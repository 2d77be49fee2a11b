"""The clock of the benchmarks."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from scst.training.step_metrics import StepMetrics


class Stopwatch:
    """Seconds of a step and of its phases.

    On the CPU these are CPU seconds of this process and of those that it waited for (Java): other work on the
    machine distorts them least. On a GPU they are wall-clock seconds, after synchronisation.

    Args:
        device: where the model is.

    Attributes:
        phases: seconds by phase.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.phases: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Seconds since some moment."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """What runs inside belongs to a phase."""
        started = self.now()
        yield
        self.phases[phase] += self.now() - started


@dataclass
class TimedMetrics(StepMetrics):
    """The metrics of our trainer, its phases under a stopwatch too.

    Args:
        device: where the model is.
        stopwatch: reads the phases.
    """

    stopwatch: Stopwatch

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """A phase for the log and for the stopwatch."""
        with self.stopwatch(phase), super().timed(phase):
            yield
