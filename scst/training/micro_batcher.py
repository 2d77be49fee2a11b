"""Processes the images of a micro-batch in parts that fit into memory."""

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
    """Memory runs out even with the smallest part that the work can be split into."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or in the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return known or should_reduce_batch_size(error)


class MicroBatcher:
    """Processes the images of a micro-batch in parts that fit into memory.

    The whole micro-batch is tried first. When memory runs out, the part is halved and tried again. Finished
    parts are not repeated, and the size that fits is kept for later micro-batches.

    Args:
        work: name of the work, for messages.
        advice: settings that take less memory, for the error when one image does not fit.
        limit: images per part to begin with; None: all.
        can_split: False when the work contains collective operations (DeepSpeed, FSDP): a process that made
            more parts than the others would wait for them for ever.

    Attributes:
        limit: images per part from now on; None while the whole micro-batch fits.
    """

    def __init__(self, work: str, advice: str, limit: int | None = None, *, can_split: bool = True):
        self.work = work
        self.advice = advice
        self.limit = limit
        self.can_split = can_split

    def size(self, num_images: int) -> int:
        """Images per part of a micro-batch of ``num_images``."""
        return min(self.limit or num_images, num_images)

    def map(self, work: Callable[[slice], Result], num_images: int) -> list[Result]:
        """Call ``work`` on consecutive slices that cover the images; returns the results in order.

        When ``work`` runs out of memory it is called again with the first half of the slice. It must
        therefore change nothing until it is about to return.

        Raises:
            DoesNotFit: when memory runs out with one image, or when the work cannot be split.
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
            # after the handler: inside it, the traceback keeps the tensors of the failed call alive
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
