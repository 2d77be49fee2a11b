"""Calls reward functions concurrently, each with its time limit, and names the reward and caption at fault.

Asynchronous functions run in an event loop, those with ``workers`` in their processes, and meanwhile the
others one after the other in a thread, in the recipe's order (so that random draws and logs can be repeated).
The step waits for each answer in that order, ``timeout_s`` at most. A hung thread cannot be ended, but the
run stops: it is left behind and does not keep the process alive.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rewards.errors import NamedRewardError, RewardError, contained, told
from rewards.execution.batch import LOG_FUNCTIONS, Batch, called, checked_values, listed
from rewards.execution.threads import CallThread, LoopThread
from rewards.execution.workers import WorkerPool
from rewards.registry import WeightedReward

logger = logging.getLogger(__name__)

SEARCH_SECONDS = 10.0
"""How long the one completion that makes a function raise is looked for."""
NOT_SET_UP = "its `setup` was not called: call setup(dataset) of the mixture with the training data first"


class RewardCalls:
    """The reward functions of a mixture, each where it runs.

    Args:
        rewards: functions with their names, ``workers`` and ``timeout_s``.

    Raises:
        RewardError: when a function with ``workers`` cannot be sent to another process.
    """

    def __init__(self, rewards: Sequence[WeightedReward]):
        self.rewards = list(rewards)
        self.pools = {r.name: WorkerPool(r.name, r.function, r.workers) for r in rewards if r.workers}
        self._threads: dict[str, CallThread] = {}
        self._is_set_up = False

    def setup(self, dataset: Any) -> None:
        """Call ``setup`` of every reward that has it.

        Raises:
            RewardError: when it raises; the message names the reward.
        """
        for reward in self.rewards:
            if reward.name in self.pools or hasattr(reward.function, "setup"):  # a pool starts its workers
                self._call(reward, "setup", dataset)
        self._is_set_up = True

    def state_dict(self) -> dict[str, Any]:
        """Name -> state of every reward that has one; errors as in :meth:`setup`."""
        return {reward.name: self._call(reward, "state_dict") for reward in self._having("state_dict")}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give every reward that has state its own.

        Raises:
            RewardError: naming the reward whose state is missing or refused.
        """
        rewards = self._having("load_state_dict")
        if missing := [reward.name for reward in rewards if reward.name not in states]:
            raise NamedRewardError(
                f"the checkpoint holds no state of the rewards {missing}: resume with the rewards that the "
                "run began with"
            )
        for reward in rewards:
            self._call(reward, "load_state_dict", states[reward.name])

    def write_tables(self, folder: Path) -> None:
        """Let every reward that has tables write them: the first one into the folder, others each into a
        folder of their name within, as two of them may well write files of the same name."""
        for i, reward in enumerate(self._having("write_tables")):
            own = folder / quote(reward.name, safe="") if i else folder
            own.mkdir(exist_ok=True)
            self._call(reward, "write_tables", own)

    def _having(self, method: str) -> list[WeightedReward]:
        return [reward for reward in self.rewards if hasattr(reward.function, method)]

    def _call(self, reward: WeightedReward, method: str, *arguments: Any) -> Any:
        """Call an optional method of a reward, here or in its worker processes."""
        try:
            return getattr(self.pools.get(reward.name, reward.function), method)(*arguments)
        except NamedRewardError:
            raise
        except RewardError as error:
            raise NamedRewardError(f"reward {reward.name!r}: {error}") from error
        except (Exception, SystemExit) as error:  # not KeyboardInterrupt: this is the main thread
            raise RewardError(f"{method} of reward {reward.name!r} raised {told(error)}") from error

    def values(self, batch: Batch) -> dict[str, list[float]]:
        """Reward name -> one value per completion, NaN for "no opinion".

        Raises:
            RewardError: when a function raises, does not answer in time, returns another number of values
                or a value that is no finite number. The message names reward, image and caption: where one
                raises, the first completion that makes it raise alone, or else the first of the batch.
        """
        started = [self._start(reward, batch) for reward in self.rewards]
        try:
            return {
                reward.name: checked_values(reward.name, self._answer(reward, future, batch), batch)
                for reward, future in zip(self.rewards, started, strict=True)
            }
        finally:
            for future in started:
                future.cancel()

    def close(self) -> None:
        """End the worker processes, and what rewards have started themselves (``close``)."""
        for reward in self.rewards:
            close = getattr(self.pools.get(reward.name, reward.function), "close", None)
            if close is not None:
                try:
                    close()
                except (Exception, SystemExit) as error:  # the run is over, and its outputs are complete
                    logger.warning("close of reward %r raised %s", reward.name, told(error))

    def _start(self, reward: WeightedReward, batch: Batch) -> Future:
        if reward.name in self.pools:
            return self._thread(reward.name).submit(self.pools[reward.name].call, batch)
        if is_async(reward.function):
            return self._loop.submit(_called_async(reward.function, batch.copy()))
        return self._thread("").submit(called, reward.function, batch.copy())

    def _answer(self, reward: WeightedReward, future: Future, batch: Batch) -> Any:
        wait([future], timeout=reward.timeout_s)
        if not future.done():
            self._abandon(reward)
            raise RewardError(
                f"reward {reward.name!r} did not answer within its `timeout_s` of {reward.timeout_s:g} s "
                f"({batch})"
            )
        error = _error(future)
        if isinstance(error, NamedRewardError):
            raise error
        if error is not None:
            given = self._culprit(reward, batch) or str(batch)
            hint = "" if self._is_set_up or not hasattr(reward.function, "setup") else f"; {NOT_SET_UP}"
            raise RewardError(f"reward {reward.name!r} raised {told(error)} ({given}){hint}") from error
        return future.result()

    def _culprit(self, reward: WeightedReward, batch: Batch) -> str | None:
        """The first completion that makes the function raise alone: at most one more batch of work, and the
        run is stopping anyway."""
        quiet = {name: _ignore for name in LOG_FUNCTIONS if batch.columns.get(name) is not None}
        deadline = time.monotonic() + min(SEARCH_SECONDS, reward.timeout_s)
        for i, single in enumerate(batch.split(len(batch))):
            future = self._start(reward, Batch(single.columns | quiet))
            wait([future], timeout=max(0.0, deadline - time.monotonic()))
            if not future.done():
                self._abandon(reward)
                return None
            if _error(future) is not None:
                return f"given {len(batch)} completions, raised by this one alone: {batch.place(i)}"
        return None

    def _abandon(self, reward: WeightedReward) -> None:
        """Give up a call that does not answer: its processes are ended; its thread cannot be."""
        if reward.name in self.pools:
            self.pools[reward.name].kill()
        self._threads.clear()

    def _thread(self, name: str) -> CallThread:
        if name not in self._threads:
            self._threads[name] = CallThread(f"reward {name}")
        return self._threads[name]

    @functools.cached_property
    def _loop(self) -> LoopThread:
        return LoopThread("asynchronous rewards")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an ``async def``, such a ``__call__``, or a partial of them."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _called_async(function: Callable[..., Any], batch: Batch) -> Any:
    with contained():  # asyncio would end the thread of its loop
        return listed(await function(**batch.columns), batch)


def _error(future: Future) -> BaseException | None:
    """What a call that is done has raised."""
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _ignore(*arguments: Any, **keywords: Any) -> None:
    """A log function for calls that only look for an error."""
