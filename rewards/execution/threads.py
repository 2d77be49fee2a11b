"""Daemon threads for reward calls, so that a reward that hangs does not keep the process alive.

The threads of ``concurrent.futures`` are joined when the interpreter exits; a reward that never answers would
hold it forever.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any


class CallThread:
    """Runs functions one after the other in a daemon thread, which ends with this object.

    Args:
        name: of the thread, for debuggers.
    """

    def __init__(self, name: str):
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        arguments = (self._jobs, _current_gpu())
        threading.Thread(target=_work, args=arguments, name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """The future answer of a call that waits for those submitted before it."""
        future: Future = Future()
        self._jobs.put((future, function, args, kwargs))
        return future


class LoopThread:
    """An event loop in a daemon thread: it stays between calls, so that connections can be kept open.

    Works beside the running loop of a notebook.
    """

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        """The future result of a coroutine; cancelling it cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _work(jobs: queue.SimpleQueue, gpu: int | None) -> None:
    if gpu is not None:
        sys.modules["torch"].cuda.set_device(gpu)
    while (job := jobs.get()) is not None:
        future, function, args, kwargs = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        del job, future, function, args, kwargs  # a batch must not live until the next one comes


def _current_gpu() -> int | None:
    """The GPU of this thread, for a new thread, which would otherwise use the first GPU in every process.

    A reward without a model needs no torch, so it is not imported for this.
    """
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else None
