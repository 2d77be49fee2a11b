"""The progress bar and the lines on the console while a stage runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scst.data.terminal import PlainColumn, plain

SHOWN_METRICS = (
    "loss",
    "reward_sampled",
    "reward_greedy",
    "zero_advantage_share",
    "kl",
    "entropy",
    "grad_norm",
    "images_per_s",
)


class RichProgress(TrainerCallback):
    """Draws a bar with the latest metrics and prints a line per evaluation, on the main process only.

    Args:
        console: where the bar is drawn.
        title: name of the stage.
    """

    def __init__(self, console: Console, title: str):
        self.console = console
        self.title = title
        self.progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = Progress(
            PlainColumn("{task.description}", "bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            PlainColumn("{task.fields[metrics]}"),
            console=self.console,
            refresh_per_second=2,
        )
        self.progress.start()
        self.task = self.progress.add_task(
            self.title, total=state.max_steps, completed=state.global_step, metrics=""
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.progress:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self.progress or not logs:
            return
        shown = {name: float(logs[name]) for name in SHOWN_METRICS if name in logs}
        if shown:
            self.progress.update(self.task, metrics=_line(shown))
            if not self.console.is_terminal:
                line = f"{self.title} step {state.global_step}/{state.max_steps}  {_line(shown)}"
                self.console.print(plain(line))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.progress and metrics:
            names = (
                "eval_loss",
                "eval_cider_d",
                "eval_mean_length",
                "eval_bad_ending_rate",
                "eval_ended_by_eos",
            )
            shown = {name: metrics[name] for name in names if name in metrics}
            line = f"{self.title} step {state.global_step}: validation  {_line(shown)}"
            self.console.print(plain(line))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
