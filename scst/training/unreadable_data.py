"""Files that cannot be read any more: noticed by one process, told to all, so that none waits for another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scst.distributed.processes import first_message


class UnreadableData(Exception):
    """A file of the dataset cannot be read any more. Raised on all processes at the same place."""


def innermost_line(error: BaseException) -> str:
    """The first line of the innermost file error in a chain of exceptions.

    ``torch.save`` and the loaders of datasets wrap such errors in others of many lines that name neither
    cause nor path.
    """
    seen: BaseException | None = error
    named = error
    while seen is not None:
        named = seen if isinstance(seen, OSError) else named
        seen = seen.__cause__ or seen.__context__
    text = str(named).strip().splitlines()
    return text[0] if text else type(named).__name__


def raise_together(fault: str | None) -> None:
    """Go on if no process has a fault. Collective.

    Raises:
        UnreadableData: on all processes, with the fault of the first that has one.
    """
    if (told := first_message(fault)) is not None:
        raise UnreadableData(told)


class GuardedBatches:
    """The batches of an evaluation up to the first that cannot be read; then ask :meth:`check`.

    Stands for the loader: other attributes and the length are the loader's.

    Args:
        loader: of this process; it has as many batches as those of the others.
        lockstep: whether processes wait for each other within forward passes; they then agree before each.
    """

    def __init__(self, loader: Any, *, lockstep: bool):
        self.loader = loader
        self.lockstep = lockstep
        self.fault: str | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches, batch = iter(self.loader), None
        while self.fault is None:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except OSError as error:
                self.fault = innermost_line(error)
            if self.lockstep:
                self.fault = first_message(self.fault)
            if self.fault is None:
                yield batch

    def check(self) -> None:
        """Collective.

        Raises:
            UnreadableData: on all processes when a batch of any could not be read.
        """
        raise_together(self.fault)
