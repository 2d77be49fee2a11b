"""A reward function in processes of its own, beside the training process.

Processes are spawned, never forked: the training process has threads (CUDA, OpenMP, data loading), which a
forked process would lack while their locks may be held. Each holds one end of a pipe and answers one request
after the other. It ends when the pipe closes and when the training process is gone, even by SIGKILL and even
while the reward hangs; the pools of ``concurrent.futures`` stay behind then, and cannot end a worker that
hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rewards.errors import NamedRewardError, contained, told
from rewards.execution.batch import LOG_FUNCTIONS, Batch, called, checked_length

LogCall = tuple[str, tuple, dict]  # which log function, and what it was called with
SECONDS_TO_END = 2.0
"""What a worker gets to end by itself when its pipe closes."""


class WorkerPool:
    """Copies of one reward function in N processes; a batch is split over them and put together in order.

    Every copy sees a part of the batch, so the function must reward a completion by itself; one that compares
    the completions of a batch needs a single worker. Nothing starts before :meth:`setup` or the first call.

    Args:
        name: of the reward, for messages.
        function: the reward; a function of a module, or an object of a class of a module.
        count: N.

    Raises:
        RewardError: when the function cannot be sent to another process.
    """

    def __init__(self, name: str, function: Callable[..., Any], count: int):
        self.name = name
        self.count = count
        self._function = _pickled(name, function, "the reward itself")
        self._workers: list[_Worker] = []
        self._dataset: dict[str, list[Any]] | None = None

    def setup(self, dataset: Any) -> None:
        """Start the workers and set the reward up in each, with the columns of ``dataset`` as plain lists."""
        names = getattr(dataset, "column_names", None) or list(dataset)
        self._dataset = {name: list(dataset[name][:]) for name in names}
        self.close()
        self._start()

    def call(self, batch: Batch) -> list[Any]:
        """The values of a batch.

        ``log_metric`` and ``log_extra`` are called here with what the workers called them with, worker by
        worker; of ``trainer_state`` workers see the numbers and texts (``global_step``, ``epoch``, ...).

        Raises:
            RewardError: when a worker died or a column cannot be sent.
            Exception: what the function raised, with the worker's traceback as a note.
        """
        self._start()
        parts = batch.split(len(self._workers))
        requests = [self._request("call", _sendable(part)) for part in parts]
        answers = self._ask(self._workers[: len(parts)], requests)
        values: list[Any] = []
        for part, (answer, logged) in zip(parts, answers, strict=True):
            values += checked_length(self.name, answer, part)
            for name, arguments, keywords in logged:
                batch.columns[name](*arguments, **keywords)
        return values

    def state_dict(self) -> dict[str, Any]:
        """The state of the first worker's reward."""
        return self._ask_first("state_dict")

    def load_state_dict(self, state: Any) -> None:
        """Give every worker's reward a state."""
        self._start()
        self._ask(self._workers, [self._request("load_state_dict", state)] * self.count)

    def write_tables(self, folder: Path) -> None:
        """Let the first worker's reward write its tables."""
        self._ask_first("write_tables", folder)

    def _ask_first(self, method: str, *arguments: Any) -> Any:
        self._start()
        ((answer, _),) = self._ask(self._workers[:1], [self._request(method, *arguments)])
        return answer

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.end(SECONDS_TO_END)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            worker.end(0)
        self._workers = []

    def _start(self) -> None:
        if self._workers:
            return
        self._workers = [_Worker(self._function, f"reward {self.name} {i}") for i in range(self.count)]
        if self._dataset is None:
            return
        try:
            self._ask(self._workers, [self._request("setup", self._dataset)] * self.count)
        except BaseException:
            self.kill()  # a worker that is not set up must not be called
            raise

    def _request(self, method: str, *arguments: Any) -> bytes:
        try:
            return pickle.dumps((method, arguments))
        except Exception:
            for name, value in arguments[0].items() if arguments and isinstance(arguments[0], dict) else ():
                _pickled(self.name, value, f"the column {name!r}")  # names the one that cannot be sent
            raise

    def _ask(self, workers: Sequence[_Worker], requests: Sequence[bytes]) -> list[tuple[Any, list]]:
        """Answers in order; all are read before one is raised, so that none is left in a pipe."""
        try:
            for worker, request in zip(workers, requests, strict=True):
                worker.connection.send_bytes(request)
            replies = [worker.connection.recv() for worker in workers]
        except (EOFError, OSError) as error:
            raise NamedRewardError(self._death()) from error
        for succeeded, answer, _ in replies:
            if not succeeded:
                raise answer
        return [(answer, logged) for _, answer, logged in replies]

    def _death(self) -> str:
        codes = [code for worker in self._workers if (code := worker.exit_code()) is not None]
        self.kill()
        how = f"exit code {codes[0]}" if codes else "it closed its pipe"
        return (
            f"a worker process of reward {self.name!r} ended ({how}; -9 is often a lack of memory): use "
            "fewer `workers`, or 0 to run the reward in the training process"
        )


class _Worker:
    """A process and this side of its pipe."""

    def __init__(self, function: bytes, name: str):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def end(self, patience: float) -> None:
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        with contextlib.suppress(OSError):  # whoever waited may close it at this moment
            self.connection.close()

    def exit_code(self) -> int | None:
        self.process.join(SECONDS_TO_END)
        return self.process.exitcode


def _pickled(name: str, value: Any, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise NamedRewardError(
            f"reward {name!r} has `workers`, but {what} cannot be sent to another process ({error}): use "
            "functions and classes of a module, or workers: 0"
        ) from error


def _sendable(batch: Batch) -> dict[str, Any]:
    """The columns in a form that can be sent: functions of the training process become markers."""
    columns = dict(batch.columns)
    for name in LOG_FUNCTIONS:
        if columns.get(name) is not None:
            columns[name] = True
    if columns.get("trainer_state") is not None:
        plain = (bool, int, float, str)
        fields = vars(columns["trainer_state"]).items()
        columns["trainer_state"] = SimpleNamespace(**{k: v for k, v in fields if isinstance(v, plain)})
    return columns


def _serve(connection: Connection, pickled: bytes) -> None:
    """What a worker does: answer (method, arguments) with (succeeded, answer or exception, log calls)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process' to handle
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # N workers with a thread per core each would crowd
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = connection.recv()
            logged: list[LogCall] = []
            try:
                with contained():
                    function = pickle.loads(pickled) if function is None else function
                    answer = _answer(function, method, arguments, logged)
                reply = pickle.dumps((True, answer, logged))
            except Exception as error:
                reply = pickle.dumps((False, _portable(error), []))
            connection.send_bytes(reply)


def _end_with_parent() -> None:
    """End this worker with the training process even while a call hangs; otherwise the pipe tells it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _answer(
    function: Callable[..., Any], method: str, arguments: tuple[Any, ...], logged: list[LogCall]
) -> Any:
    if method != "call":
        optional = getattr(function, method, None)
        return optional(*arguments) if optional is not None else None
    (columns,) = arguments
    for name in LOG_FUNCTIONS:
        if columns.get(name) is not None:
            columns[name] = partial(_log, logged, name)
    answer = called(function, Batch(columns))
    if not isinstance(answer, list):  # the training process says so
        return answer
    return [value.item() if hasattr(value, "item") and not value.ndim else value for value in answer]


def _log(logged: list[LogCall], which: str, /, *arguments: Any, **keywords: Any) -> None:
    logged.append((which, arguments, keywords))


def _portable(error: Exception) -> Exception:
    """The exception with its traceback as a note; one that cannot be pickled becomes a plain one."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(told(error))
    return error
