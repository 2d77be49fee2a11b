"""Detects reward hacking: the reward of held-out captions rises while other metrics of them fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from scst.data.files import STAGING, give_umask
from scst.metrics.bootstrap import resampled_values
from scst.training.monitors.monitor import TRUSTED, Monitor
from scst.training.run_folder.checkpoints import publish
from scst.training.validation import CaptionValidation

INTERVAL = (2.5, 97.5)
"""Percentiles of the paired bootstrap difference. A metric has fallen when the interval lies below zero."""


@dataclass(frozen=True)
class Observation:
    """One metric at one evaluation.

    Attributes:
        step: optimizer step of the evaluation.
        reward: mean reward of the held-out captions at that step.
        value: value of the metric.
        resampled: (S,) values of the metric on S resamples of the images, the same at every evaluation.
    """

    step: int
    reward: float
    value: float
    resampled: list[float]


@dataclass(frozen=True)
class Alarm:
    """A watched metric fell and stayed lower while the reward rose.

    Attributes:
        metric: name of the metric.
        step: optimizer step of the evaluation that raised the alarm.
        best_step: optimizer step of the metric's best evaluation, with which it is compared.
        values: the metric at ``best_step`` and at ``step``.
        rewards: the reward at ``best_step`` and at ``step``.
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
class HackingRule:
    """Compares every evaluation with the best one so far, metric by metric.

    An evaluation is suspicious for a metric when the reward is higher than it was at the metric's best
    evaluation, and the metric is worse by more than its paired bootstrap error over images. After
    ``patience`` suspicious evaluations in a row there is an alarm, once until the metric has recovered.

    Attributes:
        directions: watched metric -> 1 when higher is better, -1 when lower is.
        patience: number of consecutive suspicious evaluations that raise an alarm.
        best: metric -> its best evaluation so far.
        suspicious: metric -> number of consecutive suspicious evaluations, up to now.
        trusted_step: step of the last evaluation that was suspicious for no metric.
        last_step: step of the last evaluation that was processed.
        alarms: all alarms so far.
    """

    directions: Mapping[str, int]
    patience: int = 2
    best: dict[str, Observation] = field(default_factory=dict)
    suspicious: dict[str, int] = field(default_factory=dict)
    trusted_step: int | None = None
    last_step: int | None = None
    alarms: list[Alarm] = field(default_factory=list)

    def observe(
        self, step: int, reward: float, values: Mapping[str, float], resampled: Mapping[str, Iterable[float]]
    ) -> list[Alarm]:
        """Process one evaluation; returns the alarms it raises.

        Args:
            step: optimizer step. A step that was processed before is ignored: a resumed run evaluates again.
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

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""
        return {
            "best": {name: vars(observation) for name, observation in self.best.items()},
            "suspicious": dict(self.suspicious),
            "trusted_step": self.trusted_step,
            "last_step": self.last_step,
            "alarms": [vars(alarm) for alarm in self.alarms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.best = {name: Observation(**observation) for name, observation in state["best"].items()}
        self.suspicious = dict(state["suspicious"])
        self.trusted_step, self.last_step = state["trusted_step"], state["last_step"]
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]


def _fell(best: Observation, now: Observation, direction: int) -> bool:
    """Whether the metric is worse than in its best evaluation by more than the paired bootstrap error."""
    difference = direction * (np.array(now.resampled) - np.array(best.resampled))
    return bool(np.nanpercentile(difference, INTERVAL[1]) < 0)


class HackingMonitor(Monitor):
    """Passes every evaluation to a :class:`HackingRule`.

    With ``stop``, the adapter of the last evaluation without suspicion is kept in ``trusted/`` of the output
    folder, and a run that an alarm stops ends with it.

    Args:
        rule: decides which evaluations are suspicious.
        validation: computes the watched metrics and the reward; its scores are resampled.
        console, stop: as in :class:`Monitor`.
    """

    name = "hacking_monitor"
    RESAMPLES = 200

    def __init__(
        self, rule: HackingRule, validation: CaptionValidation, console: Console, *, stop: bool = False
    ):
        super().__init__(rule, console, stop=stop)
        self.rule: HackingRule = rule
        self.validation = validation

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is None or model is None:
            raise ValueError("on_evaluate needs the metrics and the model, which the trainer passes")
        resampled = {
            name: resampled_values(self.validation.scores[name], len(self.validation), self.RESAMPLES, seed=0)
            for name in self.rule.directions
        }
        values = {name: metrics[f"eval_{name}"] for name in self.rule.directions}
        alarms = self.rule.observe(state.global_step, metrics["eval_reward"], values, resampled)
        if self.stop and self.rule.trusted_step == state.global_step and state.is_world_process_zero:
            _keep(model, Path(str(args.output_dir)))
        self.report(alarms, control)

    def sound_adapter(self, output_dir: Path) -> tuple[Path, str]:
        """``trusted/``: the adapter of the last evaluation without suspicion, and its step."""
        return output_dir / TRUSTED, f"step {self.rule.trusted_step}"


def _keep(model: PeftModel, output_dir: Path) -> None:
    """Make the present adapter the trusted one; a kill on the way leaves the one before or none."""
    staged = output_dir / STAGING / TRUSTED
    model.save_pretrained(str(staged))
    give_umask(staged)
    publish(staged, output_dir / TRUSTED)
