"""Long work of one process while the others wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState

from scst.distributed.processes import any_process, first_message
from scst.errors import DataError

SECONDS = 15.0
"""Between the signs of life that the main process gives; collective operations give up after minutes."""

Result = TypeVar("Result")


def on_main_process(work: Callable[[], Result]) -> Result | None:
    """Call ``work`` on the main process alone; None on the others, which wait however long it takes.

    Collective.

    Raises:
        DataError: on the other processes, when ``work`` fails on the main one.
    """
    state = PartialState()
    if state.num_processes == 1:
        return work()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised below, in the main thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True) if state.is_main_process else None
    if thread is not None:
        thread.start()
    over = False
    while not over:
        if thread is not None:
            thread.join(SECONDS)
        (over,) = any_process(thread is not None and not thread.is_alive())
    message = first_message(str(errors[0]) if errors else None)
    if errors:
        raise errors[0]
    if message is not None:
        raise DataError(message)
    return results[0] if results else None
