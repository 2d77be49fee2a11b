"""A table of what the policy writes, beside its rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from scst.data.terminal import PlainTable
from scst.rl.rewarder import RewardedRollout


class SampleTable(TrainerCallback):
    """Every so many steps, a table of what the policy writes and what it is told about it.

    Args:
        console: where to print.
        every: steps between tables; 0 for never.
        last_step: returns what the trainer's last micro-batch learnt from.
        num_images: rows of the table.
    """

    def __init__(
        self,
        console: Console,
        every: int,
        last_step: Callable[[], RewardedRollout | None],
        num_images: int = 3,
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


def sample_table(record: RewardedRollout, step: int, num_images: int) -> PlainTable:
    """Image id, references, greedy caption, the first sample, their rewards and the advantage."""
    table = PlainTable(title=f"step {step}", title_justify="left", show_lines=True)
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
