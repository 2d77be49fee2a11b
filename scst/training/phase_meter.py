"""Measures time and peak memory of the phases of a step."""

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
"""Bytes per GB. This project counts binary gigabytes, as the sizes of graphics cards do."""


def device_memory_gb(device: torch.device) -> float:
    """Memory of a GPU in GB; for the CPU the memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB


@dataclass
class Usage:
    """Time and memory of one execution of a phase; filled in when it ends.

    Attributes:
        seconds: wall-clock time, including work that was queued on the GPU.
        peak_gb: peak memory within the phase, in GB.
    """

    seconds: float = 0.0
    peak_gb: float = 0.0


class PhaseMeter:
    """Measures time and peak memory of the phases of a step.

    On CUDA the peak is the memory that tensors occupied (``torch.cuda.max_memory_allocated``, reset for every
    phase). On the CPU it is the largest resident set of the whole process, model and libraries included. On
    Linux the kernel's high-water mark is reset for every phase, so other readers of that mark
    (``ru_maxrss``) see the peak since the last phase began. On other systems the mark cannot be reset, and
    the peak is that since the process began.

    Args:
        device: the model's device.

    Attributes:
        seconds: total seconds by phase.
        peak_gb: peak memory by phase, in GB.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Set all measurements to zero."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_gb: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, phase: str) -> Iterator[Usage]:
        """Measure the block as one execution of a phase."""
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
