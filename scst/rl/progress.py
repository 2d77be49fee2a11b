"""What a person sees while a stage runs, and what is saved beside its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from transformers import TrainerCallback

from rewards.mixture import RewardMixture
from scst.rl.trainer import StepRecord

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
    """One progress bar with the latest metrics, and a line for every evaluation. Only the main process draws.

    Args:
        console: where to draw.
        title: name of the stage.
    """

    def __init__(self, console: Console, title: str):
        self.console = console
        self.title = title
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            refresh_per_second=2,
        )
        self.progress.start()
        self.task = self.progress.add_task(
            self.title, total=state.max_steps, completed=state.global_step, metrics=""
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if not self.progress or not logs:
            return
        shown = {name: float(logs[name]) for name in SHOWN_METRICS if name in logs}
        if shown:
            self.progress.update(self.task, metrics=_line(shown))
            if not self.console.is_terminal:
                self.console.print(f"{self.title} step {state.global_step}/{state.max_steps}  {_line(shown)}")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict | None = None, **kwargs: Any
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
            self.console.print(f"{self.title} step {state.global_step}: validation  {_line(shown)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())


class SampleTable(TrainerCallback):
    """Every so many steps, a table of what the policy writes and what it is told about it.

    Args:
        console: where to print.
        every: steps between tables; 0 for never.
        last_step: returns the trainer's record of its last step.
        num_images: rows of the table.
    """

    def __init__(
        self, console: Console, every: int, last_step: Callable[[], StepRecord | None], num_images: int = 3
    ):
        self.console = console
        self.every = every
        self.last_step = last_step
        self.num_images = num_images

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record = self.last_step()
        due = self.every and state.global_step % self.every == 0
        if due and record is not None and state.is_world_process_zero:
            self.console.print(sample_table(record, state.global_step, self.num_images))


def sample_table(record: StepRecord, step: int, num_images: int) -> Table:
    """Image id, references, greedy caption, the first sample, their rewards and the advantage."""
    table = Table(title=f"step {step}", title_justify="left", show_lines=True)
    for column in ("image", "references", "greedy caption", "reward", "a sample", "reward", "advantage"):
        table.add_column(column, justify="right" if column in ("reward", "advantage") else "left")
    for i in range(min(num_images, len(record.rollout.greedy_captions))):
        references = dict.fromkeys(record.columns["references"][i])
        table.add_row(
            str(record.columns["image_id"][i]),
            "\n".join(references),
            record.rollout.greedy_captions[i],
            f"{record.rewards.greedy[i]:.2f}",
            record.rollout.captions[i][0],
            f"{record.rewards.sampled[i, 0]:.2f}",
            f"{record.advantages[i, 0]:+.2f}",
        )
    return table


REWARD_STATE = "reward_state.pt"


class SaveRewardState(TrainerCallback):
    """Saves the state of the rewards, and the tables they count with, in every checkpoint.

    Args:
        reward: the mixture.
    """

    def __init__(self, reward: RewardMixture):
        self.reward = reward

    def save_beside(self, folder: Path) -> None:
        """Into a checkpoint that is being written; called on one process."""
        torch.save(self.reward.state_dict(), folder / REWARD_STATE)
        self.reward.write_tables(folder)
