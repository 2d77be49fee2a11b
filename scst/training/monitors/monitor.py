"""The base class of callbacks that watch a run and may end it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scst.adapters.loading import adapter_weights, fill_adapter
from scst.data.terminal import labelled, plain

TRUSTED = "trusted"
"""Name of the folder, in the output folder, of the adapter of the last evaluation without suspicion."""


class Rule(Protocol):
    """Decides from its observations when to raise an alarm; keeps the state that this needs."""

    @property
    def alarms(self) -> Sequence[object]:
        """All alarms so far; ``str`` of one is a line for the console."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class Monitor(TrainerCallback):
    """Prints the alarms of a rule. With ``stop`` it ends the run, with an adapter from before the alarm.

    Its state is saved with every checkpoint, under ``name``.

    Args:
        rule: decides when to raise an alarm.
        console: where alarms are printed.
        stop: whether an alarm ends the run.

    Attributes:
        stopped: whether an alarm has ended the run.
    """

    name: str

    def __init__(self, rule: Rule, console: Console, *, stop: bool = False):
        self.rule, self.console, self.stop = rule, console, stop
        self.stopped = False

    @property
    def alarms(self) -> Sequence[object]:
        """All alarms of the run."""
        return self.rule.alarms

    @abstractmethod
    def sound_adapter(self, output_dir: Path) -> tuple[Path, str] | None:
        """Folder and name of the last adapter from before the alarm; None when there is none."""

    def report(self, alarms: Sequence[object], control: TrainerControl) -> None:
        """Print alarms; with ``stop``, also end the run."""
        for alarm in alarms:
            self.console.print(labelled("ALARM", "bold red", alarm))
        if alarms and self.stop:
            self.stopped = control.should_training_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule, and whether an alarm has ended the run."""
        return self.rule.state_dict() | {"stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.rule.load_state_dict(state)
        self.stopped = state["stopped"]

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        self.restore_adapter(model, Path(str(args.output_dir)), state.global_step)

    def restore_adapter(self, model: torch.nn.Module | None, output_dir: Path, step: int) -> None:
        """If an alarm has ended the run, load the last adapter from before it into the model."""
        sound = self.sound_adapter(output_dir) if self.stopped else None
        if sound is not None and model is not None:
            source, name = sound
            fill_adapter(model, adapter_weights(source), source)
            self.console.print(plain(f"stopped at step {step}; the adapter is that of {name}"))
