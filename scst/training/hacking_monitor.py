"""Reward hacking: the reward of held-out captions rises while metrics that are not rewarded fall."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peft import load_peft_weights, set_peft_model_state_dict
from rich.console import Console
from transformers import TrainerCallback

from scst.metrics.bootstrap import resampled_values
from scst.training.run_record import write_json
from scst.training.validation import CaptionValidation

INTERVAL = (2.5, 97.5)
"""Percentiles of the paired bootstrap difference: a fall counts when all of the interval is below zero."""

TRUSTED = "trusted"
"""Folder of a run with the adapter of the last evaluation without suspicion."""


@dataclass(frozen=True)
class Observation:
    """One metric at one evaluation.

    Attributes:
        step: optimizer step of the evaluation.
        reward: mean reward of the held-out captions at that step.
        value: of the metric.
        resampled: (S,) the metric on resampled images, the same images at every evaluation.
    """

    step: int
    reward: float
    value: float
    resampled: list[float]


@dataclass(frozen=True)
class Alarm:
    """A watched metric fell, and kept lower, while the reward rose.

    Attributes:
        metric: its name.
        step: of the evaluation that raised the alarm.
        best_step: of the evaluation that it is compared with.
        values: the metric then and now.
        rewards: the reward then and now.
    """

    metric: str
    step: int
    best_step: int
    values: tuple[float, float]
    rewards: tuple[float, float]

    def __str__(self) -> str:
        (was, now), (reward_was, reward_now) = self.values, self.rewards
        return (
            f"reward hacking at step {self.step}: since step {self.best_step} the reward of held-out "
            f"captions rose from {reward_was:.3f} to {reward_now:.3f}, but {self.metric} went from {was:.3f} "
            f"to {now:.3f}"
        )


@dataclass
class HackingWatch:
    """Compares every evaluation with the best one so far, metric by metric.

    An evaluation is suspicious for a metric when the reward is higher than it was at the metric's best
    evaluation, and the metric is worse by more than its paired bootstrap error over images. After
    ``patience`` suspicious evaluations in a row there is an alarm, once until the metric has recovered.

    Args:
        directions: watched metric -> 1 when higher is better, -1 when lower is.
        patience: M, suspicious evaluations in a row.
    """

    directions: Mapping[str, int]
    patience: int = 2
    best: dict[str, Observation] = field(default_factory=dict)
    suspicious: dict[str, int] = field(default_factory=dict)
    trusted_step: int | None = None
    last_step: int | None = None
    alarms: list[Alarm] = field(default_factory=list)

    def observe(
        self, step: int, reward: float, values: Mapping[str, float], resampled: Mapping[str, Sequence[float]]
    ) -> list[Alarm]:
        """Take an evaluation in; returns the alarms it raises.

        Args:
            step: optimizer step; one that was observed before says nothing (a resumed run evaluates again).
            reward: mean reward of the held-out captions.
            values: watched metric -> its value.
            resampled: watched metric -> (S,) values on resampled images.
        """
        if self.last_step is not None and step <= self.last_step:
            return []
        self.last_step = step
        raised = []
        for name, direction in self.directions.items():
            now = Observation(step, float(reward), float(values[name]), [float(v) for v in resampled[name]])
            best = self.best.setdefault(name, now)
            fell = now.reward > best.reward and _fell(best, now, direction)
            self.suspicious[name] = self.suspicious.get(name, 0) + 1 if fell else 0
            if self.suspicious[name] == self.patience:
                rewards, was_is = (best.reward, now.reward), (best.value, now.value)
                raised.append(Alarm(name, step, best.step, was_is, rewards))
            if direction * now.value >= direction * best.value:
                self.best[name] = now
        if not any(self.suspicious.values()):
            self.trusted_step = step
        self.alarms += raised
        return raised

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""
        return {
            "best": {name: vars(observation) for name, observation in self.best.items()},
            "suspicious": dict(self.suspicious),
            "trusted_step": self.trusted_step,
            "last_step": self.last_step,
            "alarms": [vars(alarm) for alarm in self.alarms],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.best = {name: Observation(**observation) for name, observation in state["best"].items()}
        self.suspicious = dict(state["suspicious"])
        self.trusted_step, self.last_step = state["trusted_step"], state["last_step"]
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]


def _fell(best: Observation, now: Observation, direction: int) -> bool:
    """Whether the metric is worse than at its best by more than the paired bootstrap error."""
    difference = direction * (np.array(now.resampled) - np.array(best.resampled))
    return bool(np.nanpercentile(difference, INTERVAL[1]) < 0)


class WatchAlarm(TrainerCallback, ABC):
    """Says what a watch says, and by choice ends the run with an adapter from before.

    The watch's memory is saved with every checkpoint, as ``FILE_NAME``.

    Args:
        watch: the rule; has ``alarms``, ``state()`` and ``load_state(state)``.
        console: where alarms are printed.
        stop: whether an alarm ends the run.
        resumed_from: checkpoint to take the watch's memory from.
    """

    FILE_NAME: str

    def __init__(
        self, watch: Any, console: Console, *, stop: bool = False, resumed_from: str | Path | None = None
    ):
        self.watch, self.console, self.stop = watch, console, stop
        self.stopped = False
        saved = Path(resumed_from) / self.FILE_NAME if resumed_from else None
        if saved is not None and saved.is_file():
            state = json.loads(saved.read_text(encoding="utf-8"))
            watch.load_state(state)
            self.stopped = state["stopped"]

    @property
    def alarms(self) -> list[Any]:
        """All alarms of the run."""
        return self.watch.alarms

    @abstractmethod
    def sound_adapter(self, output_dir: Path) -> tuple[Path, str] | None:
        """The last adapter that was sound, and what it is called; None where there is none."""

    def say(self, alarms: Sequence[Any], control: Any) -> None:
        """Print alarms, and end the run if they do."""
        for alarm in alarms:
            self.console.print(f"[bold red]ALARM[/bold red] {alarm}")
        if alarms and self.stop:
            self.stopped = control.should_training_stop = True

    def save_beside(self, folder: Path) -> None:
        """The watch's memory, into a checkpoint that is being written; called on one process."""
        write_json(folder / self.FILE_NAME, self.watch.state() | {"stopped": self.stopped})

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.restore_finished(args, state, model)

    def restore_finished(self, args: Any, state: Any, model: Any) -> None:
        """Give the model of a run that an alarm ended the last adapter that was sound."""
        sound = self.sound_adapter(Path(args.output_dir)) if self.stopped else None
        if sound is not None:
            source, name = sound
            set_peft_model_state_dict(model, load_peft_weights(str(source), device="cpu"))
            self.console.print(f"stopped at step {state.global_step}; the adapter is that of {name}")


class HackingAlarm(WatchAlarm):
    """Asks a :class:`HackingWatch` about every evaluation.

    The adapter of the last evaluation without suspicion is kept in ``trusted/`` of the output folder; a run
    that is stopped ends with it.

    Args:
        watch: the rule.
        validation: made the captions; its metrics include the watched ones, and the reward.
        console, settings: as of :class:`WatchAlarm`.
    """

    FILE_NAME = "watch.json"
    RESAMPLES = 200

    def __init__(self, watch: HackingWatch, validation: CaptionValidation, console: Console, **settings: Any):
        super().__init__(watch, console, **settings)
        self.validation = validation

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        resampled = {
            name: resampled_values(self.validation.scores[name], len(self.validation), self.RESAMPLES, seed=0)
            for name in self.watch.directions
        }
        values = {name: metrics[f"eval_{name}"] for name in self.watch.directions}
        alarms = self.watch.observe(state.global_step, metrics["eval_reward"], values, resampled)
        if self.stop and self.watch.trusted_step == state.global_step and state.is_world_process_zero:
            model.save_pretrained(Path(args.output_dir) / TRUSTED)
        self.say(alarms, control)

    def sound_adapter(self, output_dir: Path) -> tuple[Path, str]:
        """That of the last evaluation without suspicion."""
        return output_dir / TRUSTED, f"step {self.watch.trusted_step}"
