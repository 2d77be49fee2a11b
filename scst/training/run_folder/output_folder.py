"""The output folder of a run, whose earlier content is kept until the new run has something better.

A run that replaces an earlier one moves it aside, into ``replaced-run``, when it begins to write; the earlier
run is deleted when the new one has its first complete checkpoint. When the new run ends before that, the
earlier one is put back: by the run itself, or after a kill by the next one. Every step of this can be
interrupted. Only files of a run are touched: its checkpoints, ``run.json``, the adapter, and what the list of
its files names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from scst.data.files import STAGING, clean_up, move_files, write_json
from scst.errors import DataError, RecipeError
from scst.files.json_reader import read_json_object
from scst.training.run_folder import checkpoints
from scst.training.run_folder.manifest import MANIFEST
from scst.training.run_folder.run_record import RECORD_NAME

REPLACED = "replaced-run"
"""Folder, in the output folder, of the earlier run while the new one has no checkpoint yet."""
MARKER = "replaced.json"
"""File in it: the names of what was moved, and whether all of it was, or it is on its way back."""
FILE_LIST = ".files-of-run.json"
"""List of the files that a run has written into its output folder, beside checkpoints and ``run.json``."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_IN_CHECKPOINTS = (MANIFEST, "trainer_state.json", *_ADAPTER)
"""A folder named like a checkpoint is one when it holds one of these."""
_README = "README.md"


class OutputFolder:
    """What a run does with its output folder. On the main process only, but for ``path`` and ``checkpoint``.

    Args:
        path: the folder; it exists, and this process holds its lock.
        say: called with a line of text about what is moved.

    Attributes:
        path: the folder.
        checkpoint: the checkpoint that the run continues from; None: it starts from the beginning.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None):
        self.path = path
        self.checkpoint: str | None = None
        self._say = say
        self._replaces = self._has_begun = self._record_is_outdated = False
        self._aside = path / REPLACED

    def open(self, *, resume: bool | str, overwrite: bool) -> None:
        """Decide what becomes of an earlier run. Nothing of it is changed.

        Args:
            resume: True to continue from the newest complete checkpoint, or the folder of a checkpoint.
            overwrite: whether an earlier run may be replaced.

        Raises:
            RecipeError: when the folder holds a run that is neither continued nor replaced, or the checkpoint
                to continue from cannot be used.
        """
        was_put_back = self._recover()
        clean_up(self.path)
        if was_put_back and resume is True:
            raise RecipeError(
                f"resume: the run that was to replace the one in {str(self.path)!r} ended before its first "
                "checkpoint, and the earlier run has been put back; --resume true now continues the earlier "
                "run, --overwrite true begins again"
            )
        self.checkpoint = checkpoints.checkpoint_to_resume(str(self.path), resume, self._say)
        is_continued = bool(resume) and (resume is True or Path(str(resume)).resolve().parent == self._root)
        if resume and self.checkpoint is None:
            self._say(f"resume: no complete checkpoint in {self.path}; starting from the beginning")
        if not (earlier := self._earlier_run()) or (is_continued and self.checkpoint):
            return
        if overwrite:
            self._refuse_foreign_checkpoints()
            self._replaces = True
        elif is_continued and RECORD_NAME in earlier:
            raise RecipeError(
                f"resume: {str(self.path)!r} holds a complete run that left no checkpoint to continue from; "
                "give another output_dir, or --overwrite true to replace it"
            )
        elif not is_continued or self._has_foreign_adapter():
            raise RecipeError(
                f"output_dir: {str(self.path)!r} holds an earlier run ({earlier[0]}); give another folder, "
                "--resume true to continue it, or --overwrite true to replace it"
            )

    @property
    def _root(self) -> Path:
        return self.path.resolve()

    def begin(self) -> None:
        """Move the earlier run aside, if it is to be replaced: from now on the new run writes."""
        self._has_begun = True
        self._record_is_outdated = not self._replaces and (self.path / RECORD_NAME).is_file()
        if not self._replaces:
            return
        names = self._earlier_run()
        self._aside.mkdir()
        self._mark("moving", names)
        for name in names:
            _move(self.path / name, self._aside / name)
        self._mark("aside", names)
        self._say(
            f"the earlier run was moved to {self._aside}; it is deleted when this run has its first complete "
            "checkpoint"
        )

    def place(self, staged: Path) -> None:
        """Move finished files into the folder, and put them on the list of the run's files.

        A ``README.md`` that no run has written stays as it is.
        """
        listed = self._listed()
        if (self.path / _README).is_file() and _README not in listed:
            (staged / _README).unlink(missing_ok=True)
        self.add(*(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file()))
        move_files(staged, self.path)

    def add(self, *names: str) -> None:
        """Put names of files or folders on the list of the run's files."""
        listed = self._listed()
        if new := sorted(set(names) - set(listed)):
            write_json(self.path / FILE_LIST, {"files": [*listed, *new]})

    def has_checkpoint(self) -> None:
        """The run has a new complete checkpoint: the record of a run that it prolongs is outdated."""
        if self._record_is_outdated:
            (self.path / RECORD_NAME).unlink(missing_ok=True)
            self._record_is_outdated = False
        self.has_result()

    def has_result(self) -> None:
        """The new run has a complete checkpoint, or its output and record: what it replaces is deleted.

        A failure to delete leaves the earlier run aside, where the next start deletes it.
        """
        if self._replaces:
            with contextlib.suppress(OSError):
                self._forget_replaced()

    def close(self) -> None:
        """At the end of a run, however it ended: put the earlier run back unless it has been replaced."""
        if not (self._has_begun and self._replaces and self._aside.is_dir()):
            return
        if self._has_new_run():
            self.has_result()
            return
        try:
            self._put_back()
        except OSError as error:
            self._say(f"the earlier run could not be put back ({error}): it is in {self._aside}")

    def _recover(self) -> bool:
        """Finish what a killed run has left half done; True when the earlier run was put back."""
        if not self._aside.is_dir():
            return False
        state, _ = self._marked()
        if state == "aside" and self._has_new_run():
            self._forget_replaced()
            return False
        self._put_back()
        return True

    def _has_new_run(self) -> bool:
        """Whether the run that moved the earlier one aside has left something complete."""
        return (self.path / RECORD_NAME).is_file() or checkpoints.newest_complete(self.path) is not None

    def _earlier_run(self) -> list[str]:
        """Names of what belongs to the run in the folder; none when it left neither result nor checkpoint."""
        folders = [p.name for _, p in checkpoints.numbered_checkpoints(self.path) if _is_checkpoint(p)]
        results = [name for name in (RECORD_NAME, *_ADAPTER) if (self.path / name).is_file()]
        if not folders and not results:
            return []
        listed = [name for name in self._listed() if (self.path / name).exists()]
        own_list = [FILE_LIST] if (self.path / FILE_LIST).is_file() else []
        return list(dict.fromkeys([*results, *folders, *listed, *own_list]))

    def _has_foreign_adapter(self) -> bool:
        """Whether there is an adapter that no run has written here, e.g. one that was downloaded."""
        listed = self._listed()
        there = [name for name in _ADAPTER if (self.path / name).is_file() and name not in listed]
        return bool(there) and not (self.path / RECORD_NAME).is_file()

    def _refuse_foreign_checkpoints(self) -> None:
        for _, folder in checkpoints.numbered_checkpoints(self.path):
            if not _is_checkpoint(folder):
                raise RecipeError(
                    f"output_dir: {str(folder)!r} has the name of a checkpoint, but no run has written it; "
                    "rename it, or give another output_dir"
                )

    def _listed(self) -> list[str]:
        """Names on the list of the run's files."""
        try:
            return self._inside(read_json_object(self.path / FILE_LIST).get("files"))
        except (OSError, DataError):
            return []

    def _inside(self, names: object) -> list[str]:
        """Those of a file's names that are texts and stay within the folder."""
        texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        resolved = {name: (self._root / name).resolve() for name in texts}
        return [n for n, path in resolved.items() if self._root in path.parents]

    def _mark(self, state: str, names: list[str]) -> None:
        write_json(self._aside / MARKER, {"state": state, "files": names})

    def _marked(self) -> tuple[str, list[str]]:
        try:
            content = read_json_object(self._aside / MARKER)
            return str(content["state"]), self._inside(content["files"])
        except FileNotFoundError:
            if all(path.name.startswith(MARKER) for path in self._aside.iterdir()):
                return "moving", []  # a run that was killed before it moved anything
            problem = f"there is no {MARKER} in it"
        except (OSError, DataError, KeyError):
            problem = f"its {MARKER} cannot be read"
        raise RecipeError(
            f"output_dir: {str(self._aside)!r} is no earlier run that was moved aside: {problem}; move or "
            "rename it"
        )

    def _put_back(self) -> None:
        state, names = self._marked()
        new = self._listed() if state == "aside" else []
        self._mark("returning", names)  # from here on a checkpoint in the folder may be the earlier run's
        for name in set(new) - set(names):
            _remove(self.path / name)
        for name in names:
            if (self._aside / name).exists():
                _remove(self.path / name)
                _move(self._aside / name, self.path / name)
        _remove_empty_folders_in(self._aside)
        (self._aside / MARKER).unlink()
        with contextlib.suppress(OSError):
            self._aside.rmdir()
        self._say(
            "the run that was to replace the earlier one left no checkpoint: the earlier run was put back"
        )

    def _forget_replaced(self) -> None:
        """Delete the earlier run. It is renamed first, so that a half-deleted one is never put back."""
        if self._aside.is_dir():
            trash = self.path / STAGING / f"deleted-{REPLACED}"
            trash.parent.mkdir(exist_ok=True)
            shutil.rmtree(trash, ignore_errors=True)
            os.replace(self._aside, trash)
            shutil.rmtree(trash, ignore_errors=True)
            with contextlib.suppress(OSError):  # a checkpoint is being written there
                trash.parent.rmdir()


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _IN_CHECKPOINTS)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty_folders_in(top: Path) -> None:
    for folder in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
