"""Detects a collapsed policy: it samples one caption only, empty captions, or repeats the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from scst.training.monitors.monitor import TRUSTED, Monitor
from scst.training.run_folder import checkpoints
from scst.training.run_folder.manifest import verify

ENTROPY_SHARE = 0.05
"""Alarm when the entropy falls below this share of its first value: sampling is nearly deterministic."""
LENGTH_SHARE = 0.2
"""Alarm when the caption length falls below this share of its first value."""
SAME_CAPTION = 0.95
"""Alarm when the most frequent caption reaches this share of all samples of a step."""
REPETITION_RISE = 0.5
"""Alarm when the share of captions that repeat themselves rises by more than this."""


@dataclass(frozen=True)
class Collapse:
    """An alarm: a metric had the value of a collapsed policy in several logs in a row.

    Attributes:
        metric: name of the metric in the log.
        step: optimizer step of the log that raised the alarm.
        values: the metric in the first log of the run, and now.
    """

    metric: str
    step: int
    values: tuple[float, float]

    def __str__(self) -> str:
        meaning = {
            "entropy": "the policy draws the same tokens whatever the chance",
            "caption_length": "captions have become empty",
            "most_common_caption": "all captions are equal",
            "repetition_rate": "captions repeat themselves",
        }[self.metric]
        was, now = self.values
        return f"collapse at step {self.step}: {meaning} ({self.metric} went from {was:.3f} to {now:.3f})"


def has_collapsed(metric: str, first: float, now: float) -> bool:
    """Whether a value is that of a collapsed policy, given the first value of the run."""
    if metric == "entropy":
        return now < ENTROPY_SHARE * first
    if metric == "caption_length":
        return now < LENGTH_SHARE * first
    if metric == "most_common_caption":
        return now >= SAME_CAPTION > first
    return now > first + REPETITION_RISE


METRICS = ("entropy", "caption_length", "most_common_caption", "repetition_rate")


@dataclass
class CollapseRule:
    """Compares every log with the first one. An alarm is raised once, until the metric has recovered.

    Attributes:
        patience: number of consecutive logs with a collapsed value that raise the alarm.
        first: metric -> its value in the first log.
        in_a_row: metric -> number of consecutive logs with a collapsed value, up to now.
        healthy_step: step of the last log without any collapsed value.
        alarms: all alarms so far.
    """

    patience: int = 5
    first: dict[str, float] = field(default_factory=dict)
    in_a_row: dict[str, int] = field(default_factory=dict)
    healthy_step: int = 0
    alarms: list[Collapse] = field(default_factory=list)

    def observe(self, step: int, values: Mapping[str, float]) -> list[Collapse]:
        """Process one log; returns the alarms it raises. Metrics that the log lacks keep their state."""
        raised = []
        for metric in METRICS:
            if metric not in values:
                continue
            now = float(values[metric])
            first = self.first.setdefault(metric, now)
            fell = has_collapsed(metric, first, now)
            self.in_a_row[metric] = self.in_a_row.get(metric, 0) + 1 if fell else 0
            if self.in_a_row[metric] == self.patience:
                raised.append(Collapse(metric, step, (first, now)))
        if not any(self.in_a_row.values()):
            self.healthy_step = step
        self.alarms += raised
        return raised

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""
        alarms = [vars(alarm) for alarm in self.alarms]
        plain = {"first": self.first, "in_a_row": self.in_a_row, "healthy_step": self.healthy_step}
        return plain | {"alarms": alarms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.first, self.in_a_row = dict(state["first"]), dict(state["in_a_row"])
        self.healthy_step = state["healthy_step"]
        self.alarms = [Collapse(a["metric"], a["step"], tuple(a["values"])) for a in state["alarms"]]


class CollapseMonitor(Monitor):
    """Passes every training log to a :class:`CollapseRule`.

    When an alarm stops the run, the run ends with the adapter in ``trusted/`` (that of the last evaluation
    without suspicion) or, without that folder, of the newest checkpoint from before the collapse.
    """

    name = "collapse_monitor"

    def __init__(self, rule: CollapseRule, console: Console, *, stop: bool = False):
        super().__init__(rule, console, stop=stop)
        self.rule: CollapseRule = rule

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.report(self.rule.observe(state.global_step, logs), control)

    def sound_adapter(self, output_dir: Path) -> tuple[Path, str] | None:
        """``trusted/`` if it exists, else the newest verified checkpoint from before the collapse."""
        if (output_dir / TRUSTED).is_dir():
            return output_dir / TRUSTED, TRUSTED
        steps = checkpoints.numbered_checkpoints(output_dir)
        sound = (folder for step, folder in steps if step <= self.rule.healthy_step)
        found = next((folder for folder in sound if verify(folder) is None), None)
        return (found, found.name) if found is not None else None
