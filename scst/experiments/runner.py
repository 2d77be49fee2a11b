"""Runs what a plan still lacks, each run in a process of its own, and survives their ends and its own."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from scst.data.files import write_text
from scst.data.terminal import PlainColumn, labelled, plain
from scst.distributed.parent_process import end_with_parent
from scst.errors import Interrupted, RunStopped
from scst.experiments.matrix_plan import RECIPE_FILE, Cell, Plan, Run, group_by_adapter

LOG_FILE, ERROR_FILE = "log.txt", "error.txt"
_LOCK_PATIENCE_S = 120
_NOT_RUN = "not run: "


@dataclass
class Outcome:
    """The outcome of the runs of a matrix.

    Attributes:
        errors: folder of a failed run -> what went wrong.
        seconds: folder of a run made now -> how long it took.
    """

    errors: dict[Path, str] = field(default_factory=dict)
    seconds: dict[Path, float] = field(default_factory=dict)


class Runner:
    """Trains and evaluates, model by model.

    A run that fails is recorded and the others go on; those that build upon it fail with it. Runs are started
    with ``--resume true``, so that one which was killed continues from its newest checkpoint. Children end
    with this process (SIGTERM on Linux, after which they save), and a lock keeps a second matrix out of the
    folder until they have.

    Args:
        scripts: what the launcher runs for "sft", "scst" and "evaluate": a script, or -m and a module;
            that of "evaluate" takes several recipe files.
        launcher: the command that starts them, of :func:`scst.experiments.launchers.launcher_command`.
        console: where progress goes.
    """

    def __init__(self, scripts: Mapping[str, Sequence[str]], launcher: Sequence[str], console: Console):
        self.scripts = scripts
        self.launcher = launcher
        self.console = console
        self.outcome = Outcome()
        self._child: subprocess.Popen | None = None
        self._stopped_by: int | None = None
        self._lock: tuple[int, ...] = ()

    def run(self, plan: Plan, root: Path, after_each: Callable[[Outcome], object]) -> Outcome:
        """Run everything that is not complete.

        Args:
            plan: of the matrix.
            root: its output folder.
            after_each: called when all cells of a model are done.

        Raises:
            Interrupted: after SIGTERM or SIGINT. RunStopped: another process works in the folder.
        """
        total = len(plan.trainings) + len(plan.evaluations)
        with ExitStack() as stack:
            self._lock = (stack.enter_context(_locked(root, self.console)),)
            stack.enter_context(self._forwarding_signals())
            advance = stack.enter_context(self._progress(total))
            for cells in group_by_adapter(plan.cells):
                for training in cells[0].run.chain():
                    self._train(training, advance)
                self._evaluate(cells, advance)
                after_each(self.outcome)
        return self.outcome

    def _train(self, run: Run, advance: Callable[..., None]) -> None:
        if run.folder in self.outcome.errors or run.folder in self.outcome.seconds:
            return
        if run.is_complete:
            advance(run, seen=True)
            return
        if run.after and run.after.folder in self.outcome.errors:
            self.outcome.errors[run.folder] = self._blame(run.after)
        else:
            advance(run, starting=True)
            started, log = time.time(), self._start(run.stage, [run], run.folder / LOG_FILE)
            if run.is_complete:
                self.outcome.seconds[run.folder] = time.time() - started
            else:
                self.outcome.errors[run.folder] = log
        advance(run)

    def _evaluate(self, cells: Sequence[Cell], advance: Callable[..., None]) -> None:
        """Run all missing evaluations of a model in one process; each reports its own error."""
        runs = list({cell.run.folder: cell.run for cell in cells}.values())
        missing = [run for run in runs if not run.is_complete]
        training = runs[0].after
        failed = training is not None and training.folder in self.outcome.errors
        log = self._blame(training) if training is not None and failed else ""
        if missing and not failed:
            advance(missing[0], starting=True)
            for run in missing:
                (run.folder / ERROR_FILE).unlink(missing_ok=True)
            log = self._start("evaluate", missing, missing[0].folder / LOG_FILE)
        for run in runs:
            if not run.is_complete:
                told = run.folder / ERROR_FILE
                self.outcome.errors[run.folder] = told.read_text("utf-8").strip() if told.is_file() else log
            advance(run)

    def _blame(self, training: Run) -> str:
        """Why nothing that builds upon a failed training was run."""
        error = self.outcome.errors[training.folder]
        return error if error.startswith(_NOT_RUN) else f"{_NOT_RUN}{training.folder.name} failed: {error}"

    def _start(self, stage: str, runs: Sequence[Run], log: Path) -> str:
        """Run a script with the recipes of runs and wait for it; returns its last message."""
        for run in runs:
            write_text(run.folder / RECIPE_FILE, yaml.safe_dump(dict(run.keys), sort_keys=False))
        files = [str(run.folder / RECIPE_FILE) for run in runs]
        arguments = files if stage == "evaluate" else ["--config", *files]
        with log.open("ab") as output:
            begin = output.tell()
            self._child = subprocess.Popen(
                [*self.launcher, *self.scripts[stage], *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
                preexec_fn=end_with_parent,
                pass_fds=self._lock,  # a child that outlives this process keeps the folder locked
            )
            code = self._child.wait()
        if self._stopped_by is not None:
            name = signal.Signals(self._stopped_by).name
            raise Interrupted(f"{name}: stopped; repeat the command to go on", self._stopped_by)
        return _last_words(log, begin) or f"exit code {code}"

    @contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT go to the running script, which saves; then this process ends."""

        def stop(number: int, frame: Any) -> None:
            # the first signal goes to the child, which saves; later ones change nothing until it has ended
            if self._stopped_by is None and self._child and self._child.poll() is None:
                self._stopped_by = number
                self._child.send_signal(signal.SIGTERM)
            elif self._child is None or self._child.poll() is not None:
                raise Interrupted(f"{signal.Signals(number).name}: stopped", number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _progress(self, total: int) -> Iterator[Callable[..., None]]:
        columns = PlainColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True) as progress:
            task, done = progress.add_task("matrix", total=total), set()

            def advance(run: Run, *, starting: bool = False, seen: bool = False) -> None:
                if starting:
                    progress.update(task, description=f"{run.stage}: {run.folder.name}")
                    self.console.print(plain(f"{run.stage}: {run.folder.name}"))
                    return
                if run.folder not in done:
                    done.add(run.folder)
                    progress.advance(task)
                error = "" if seen else self.outcome.errors.get(run.folder, "")
                if error and not error.startswith(_NOT_RUN):
                    self.console.print(labelled("failed", "red", f"{run.folder.name}: {error}"))

            yield advance


def _last_words(log: Path, begin: int) -> str:
    """The error line among what was written since ``begin``, else the last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


@contextmanager
def _locked(root: Path, console: Console) -> Iterator[int]:
    """One matrix at a time in a folder; children of one that was killed hold the lock until they end."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        _acquire(file.fileno(), root, console)
        yield file.fileno()


def _acquire(descriptor: int, root: Path, console: Console) -> None:
    """Take the lock, waiting for children that are still ending.

    Raises:
        RunStopped: when it stays taken.
    """
    until, told = time.monotonic() + _LOCK_PATIENCE_S, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                message = (
                    f"output_dir: another matrix is at work in {root}; wait for it, or give another folder"
                )
                raise RunStopped(message) from None
        if not told:
            console.print(plain(f"waiting for the runs of another process in {root}"))
            told = True
        time.sleep(0.2)
