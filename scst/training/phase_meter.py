"""Time and peak memory of the phases of a step."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GB = 2**30
"""Bytes of what is called a GB here, as in the size of a graphics card."""


def device_memory_gb(device: torch.device) -> float:
    """Memory of the card; on the CPU that of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB


@dataclass
class Usage:
    """What one pass through a phase took; filled when it ends.

    Attributes:
        seconds: wall-clock time, work queued on the device included.
        peak_gb: most memory in use at any time within the phase.
    """

    seconds: float = 0.0
    peak_gb: float = 0.0


class PhaseMeter:
    """Time and peak memory of the phases of a step.

    On CUDA the peak is what tensors occupied (``torch.cuda.max_memory_allocated``, reset for every phase). On
    the CPU it is the largest resident set of the whole process, model and libraries included. On Linux the
    kernel's high-water mark is set back for it, so what else reads that mark (``ru_maxrss``) sees the peak
    since the last phase began; elsewhere it is the peak since the process began.

    Args:
        device: where the model is.

    Attributes:
        seconds: total by phase.
        peak_gb: maximum by phase.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_gb: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, phase: str) -> Iterator[Usage]:
        """Measure what happens inside as part of a phase."""
        usage = Usage()
        _reset_peak(self.device)
        started = time.perf_counter()
        yield usage
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        usage.seconds = time.perf_counter() - started
        usage.peak_gb = _peak_bytes(self.device) / GB
        self.seconds[phase] += usage.seconds
        self.peak_gb[phase] = max(self.peak_gb[phase], usage.peak_gb)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or a sandbox that forbids it
        Path("/proc/self/clear_refs").write_text("5")  # "reset the peak resident set size", man 5 proc


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
