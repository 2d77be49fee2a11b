"""Makes ``transformers.Trainer`` write its files of a checkpoint where it is told, and delete nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer


class LibraryCheckpoints(Trainer):
    """A trainer whose own files of a checkpoint go into any folder; which one, and when, others decide."""

    model: torch.nn.Module  # narrower than the library's
    _staging: str | None = None

    def write_library_files(self, folder: Path, folder_of: Callable[[int], Path]) -> None:
        """Write the library's own files of this step.

        Args:
            folder: where they go, named as the checkpoint will be.
            folder_of: step -> the folder of its checkpoint when it is published.
        """
        best_step = self.state.best_global_step
        if best_step:
            best = folder_of(best_step)
            if best_step == self.state.global_step or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        # the library would look for the best checkpoint, and prune, in the folder that it writes to
        with self._nothing_pruned(), self._writing_to(folder.parent):
            self.state.best_global_step = None
            try:
                super()._save_checkpoint(self.model, trial=None)
            finally:
                self.state.best_global_step = best_step
        if self.args.should_save:
            self.state.save_to_json(str(folder / "trainer_state.json"))  # once more, with the best step

    def _get_output_dir(self, trial: Any = None) -> str:
        return self._staging or super()._get_output_dir(trial=trial)

    @contextmanager
    def _writing_to(self, folder: Path) -> Iterator[None]:
        self._staging = str(folder)
        try:
            yield
        finally:
            self._staging = None

    @contextmanager
    def _nothing_pruned(self) -> Iterator[None]:
        """The library prunes by age alone: the last good checkpoint, too, when a damaged one is newer."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        with self._nothing_pruned():
            return super()._finalize_training(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A ``README.md`` for the hub only: TRL writes one with every checkpoint, over one of the user's."""
        if self.args.push_to_hub:
            super().create_model_card(*args, **kwargs)

    def _load_callback_state(self) -> None:
        """The library restores early stopping with the patience of the checkpoint; this run's counts."""
        patience = [each.early_stopping_patience for each in self._early_stopping()]
        super()._load_callback_state()
        for callback, steps in zip(self._early_stopping(), patience, strict=False):
            callback.early_stopping_patience = steps

    @property
    def early_stopping_patience(self) -> int | None:
        """Evaluations without an improvement that end the run; None: none do."""
        return min((callback.early_stopping_patience for callback in self._early_stopping()), default=None)

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
