"""Memory: the peak of every phase of a step, and work in smaller parts when there is not enough of it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from scst.errors import ScstError

GB = 2**30
"""Bytes of what is called a GB here, as in the size of a graphics card."""

logger = logging.getLogger(__name__)


class DoesNotFit(ScstError):
    """There is not enough memory, whatever this project can do about it by itself."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return known or should_reduce_batch_size(error)


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


class FittingParts:
    """Works through the images of a micro-batch in parts that fit into memory.

    The whole micro-batch is tried first. When memory runs out the part is halved and tried again; parts that
    were done stay done, and the size that was found is kept.

    Args:
        work: what is done, for messages.
        advice: what else takes less memory, for the case that one image is too much.
        limit: images at a time to begin with; None: all.

    Attributes:
        can_split: False where the processes meet inside the work, so that none can do it in more parts.
    """

    def __init__(self, work: str, advice: str, limit: int | None = None):
        self.work = work
        self.advice = advice
        self.limit = limit
        self.can_split = True

    def size(self, num_images: int) -> int:
        """Images at a time, for a micro-batch of so many."""
        return min(self.limit or num_images, num_images)

    def run(self, num_images: int, work: Callable[[slice], None]) -> None:
        """Call ``work`` with consecutive slices of the images until all are done.

        ``work`` may be called again with the first half of a slice that ran out of memory: until it returns,
        it must leave no trace.

        Raises:
            DoesNotFit: when memory runs out with a single image, or where nothing can be split.
        """
        start = 0
        while start < num_images:
            part = slice(start, min(start + self.size(num_images), num_images))
            if self._fits(work, part):
                start = part.stop
            else:
                clear_device_cache(garbage_collection=True)  # here nothing holds the failed call's tensors

    def _fits(self, work: Callable[[slice], None], part: slice) -> bool:
        try:
            work(part)
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(part.stop - part.start, error)
        return False

    def _shrink(self, tried: int, error: Exception) -> None:
        if tried == 1 or not self.can_split:
            images = "one image" if tried == 1 else f"{tried} images"
            smaller = "" if tried == 1 else "per_device_train_batch_size (with gradient_accumulation_steps), "
            raise DoesNotFit(
                f"{self.work}: out of memory with {images} at a time. Try {smaller}{self.advice}. "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        self.limit = (tried + 1) // 2
        logger.warning(
            "%s: out of memory with %d images at a time; from now on %d", self.work, tried, self.limit
        )
