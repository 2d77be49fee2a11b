"""Work on the images of a micro-batch in parts that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from scst.errors import ScstError

Result = TypeVar("Result")

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


class MicroBatcher:
    """Works through the images of a micro-batch in parts that fit into memory.

    The whole micro-batch is tried first. When memory runs out the part is halved and tried again; parts that
    were done stay done, and the size that was found is kept.

    Args:
        work: what is done, for messages.
        advice: what else takes less memory, for the case that one image is too much.
        limit: images at a time to begin with; None: all.
        can_split: False where the processes meet inside the work, so that none can do it in more parts.
    """

    def __init__(self, work: str, advice: str, limit: int | None = None, *, can_split: bool = True):
        self.work = work
        self.advice = advice
        self.limit = limit
        self.can_split = can_split

    def size(self, num_images: int) -> int:
        """Images at a time, for a micro-batch of so many."""
        return min(self.limit or num_images, num_images)

    def map(self, work: Callable[[slice], Result], num_images: int) -> list[Result]:
        """The results of ``work`` on consecutive slices of the images, until all are done.

        ``work`` may be called again with the first half of a slice that ran out of memory: until it returns,
        it must leave no trace.

        Raises:
            DoesNotFit: when memory runs out with a single image, or where nothing can be split.
        """
        results: list[Result] = []
        start = 0
        while start < num_images:
            part = slice(start, min(start + self.size(num_images), num_images))
            try:
                results.append(work(part))
                start = part.stop
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(part.stop - part.start, error)
            # outside of the handler, where nothing refers to the tensors of the failed call any more
            clear_device_cache(garbage_collection=True)
        return results

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
