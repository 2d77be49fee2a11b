"""The claim of an output folder by all processes of a run: its lock, and what becomes of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from scst.data.terminal import plain
from scst.distributed.processes import first_message, from_main_process
from scst.errors import RecipeError
from scst.training.run_folder.output_folder import OutputFolder
from scst.training.run_folder.run_lock import run_lock


@contextmanager
def claimed_output(
    output_dir: str, *, resume: bool | str = False, overwrite: bool = False, console: Console
) -> Iterator[OutputFolder]:
    """Hold the output folder inside the block. Collective; the main process does the work.

    What can be checked without data and model is checked here. Nothing of an earlier run is changed before
    :meth:`OutputFolder.begin`.

    Args:
        output_dir: the folder; it is created.
        resume: True to continue from the newest complete checkpoint, or the folder of a checkpoint.
        overwrite: whether an earlier run in the folder may be replaced.
        console: where takeovers and moves are told.

    Raises:
        RecipeError: on all processes, when another run is at work in the folder, an earlier one is neither
            continued nor replaced, or it cannot be written.
    """
    path = Path(output_dir)

    def say(line: str) -> None:
        console.print(plain(line))

    output = OutputFolder(path, say)
    with ExitStack() as stack:
        fault = None
        if PartialState().is_main_process:
            stack.callback(_remove_if_empty, path)
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_lock(path, say))
                output.open(resume=resume, overwrite=overwrite)
            except RecipeError as error:
                fault = str(error)
            except OSError as error:
                fault = f"output_dir: {output_dir!r} cannot be written: {error}"
            stack.callback(output.close)
        if fault := first_message(fault):
            raise RecipeError(fault)
        output.checkpoint = from_main_process(output.checkpoint)
        yield output


def _remove_if_empty(folder: Path) -> None:
    """A run that wrote nothing leaves no folder behind."""
    with suppress(OSError):  # it holds something, or was never made
        folder.rmdir()
