"""A plan before the hours: a few real steps are measured and the time of the whole run is projected."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from scst.adapters.snapshot import AdapterSnapshot
from scst.training.hooks import TrainerHooks
from scst.training.phase_meter import PhaseMeter, device_memory_gb

OTHER = "other"
"""The part of a step outside the measured phases: reading images, optimizer, logging."""


@dataclass(frozen=True)
class StepCost:
    """What an optimizer step takes, as a mean over several.

    Attributes:
        images: of one step, over all processes.
        seconds: wall-clock time from the end of one step to the end of the next.
        cpu_seconds: of this process, all its threads.
        first_seconds: from the start of training to the end of the first step.
        phases: seconds by phase, :data:`OTHER` included.
        peak_gb: most memory by phase (:class:`scst.training.phase_meter.PhaseMeter` says what is counted).
        micro_batches: images at a time in the phases that did not fit whole.
    """

    images: int
    seconds: float
    cpu_seconds: float
    first_seconds: float
    phases: dict[str, float]
    peak_gb: dict[str, float]
    micro_batches: dict[str, int] = field(default_factory=dict)

    @property
    def images_per_s(self) -> float:
        """Training images a second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class EvaluationCost:
    """What validation takes.

    Attributes:
        images: that were captioned for the measurement.
        seconds: of an evaluation of so many.
        first_seconds: what the first evaluation takes in addition, e.g. to start a scorer.
        peak_gb: most memory.
    """

    images: int
    seconds: float
    first_seconds: float
    peak_gb: float


@dataclass(frozen=True)
class Schedule:
    """What a run does: optimizer steps, evaluations (one before the first step included) and checkpoints."""

    steps: int
    evaluations: int
    checkpoints: int


def schedule_of(args: TrainingArguments, steps: int, steps_per_epoch: int) -> Schedule:
    """Evaluations and checkpoints of a run, by asking the callback that decides about them.

    Args:
        args: the training arguments.
        steps: optimizer steps of the whole run.
        steps_per_epoch: of one pass over the training images.
    """
    flow, state = DefaultFlowCallback(), TrainerState(max_steps=steps)
    state.compute_steps(args, steps)
    evaluations, checkpoints = int(bool(args.eval_on_start)), 0
    for step in range(1, steps + 1):
        state.global_step, state.epoch = step, step / steps_per_epoch
        controls = [flow.on_step_end(args, state, TrainerControl())]
        if step % steps_per_epoch == 0 or step == steps:
            controls.append(flow.on_epoch_end(args, state, TrainerControl()))
        evaluations += sum(control.should_evaluate for control in controls)
        checkpoints += sum(control.should_save for control in controls)
    return Schedule(steps, evaluations, checkpoints)


class _StepClock(TrainerCallback):
    """Times of step ends; forgets the phases of the steps before ``warm_up`` were done."""

    def __init__(self, phases: PhaseMeter, warm_up: int):
        self.phases = phases
        self.warm_up = warm_up
        self.ends: list[tuple[float, float]] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == self.warm_up:
            self.phases.clear()


def measure_steps(trainer: TrainerHooks, *, steps: int, warm_up: int = 1) -> StepCost:
    """Train for a few steps; the adapter is afterwards what it was.

    Args:
        trainer: of either stage, not used before. Its arguments are changed: it neither evaluates nor saves.
        steps: that are measured.
        warm_up: steps before them.
    """
    args, clock = trainer.args, _StepClock(trainer.metrics.phases, warm_up)
    args.max_steps = warm_up + steps
    args.eval_strategy, args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = False
    trainer.add_callback(clock)
    started = time.perf_counter()
    with AdapterSnapshot(trainer.model).applied(trainer.model):
        trainer.train()
    wall, cpu = ((clock.ends[-1][i] - clock.ends[warm_up - 1][i]) / steps for i in (0, 1))
    phases = {name: total / steps for name, total in trainer.metrics.phases.seconds.items()}
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return StepCost(
        images=min(per_step, len(trainer.train_dataset)),
        seconds=wall,
        cpu_seconds=cpu,
        first_seconds=clock.ends[0][0] - started,
        phases=phases | {OTHER: max(0.0, wall - sum(phases.values()))},
        peak_gb=dict(trainer.metrics.phases.peak_gb),
        micro_batches={name: each.limit for name, each in trainer.batchers.items() if each.limit},
    )


def measure_evaluation(trainer: TrainerHooks) -> EvaluationCost | None:
    """Evaluate twice on the trainer's validation images; None when it has none."""
    if trainer.validation is None:
        return None
    meter, seconds = PhaseMeter(trainer.args.device), []
    for _ in range(2):
        with meter.measure("evaluation") as usage:
            trainer.evaluate()
        seconds.append(usage.seconds)
    extra = max(0.0, seconds[0] - seconds[1])
    return EvaluationCost(len(trainer.validation), seconds[1], extra, meter.peak_gb["evaluation"])


def measure_checkpoint(trainer: TrainerHooks) -> float:
    """Seconds of a checkpoint, written to the trainer's output folder. After :func:`measure_steps`."""
    started = time.perf_counter()
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Projection:
    """Seconds of a whole run.

    Attributes:
        startup: until training begins: imports, data, model.
        steps: all optimizer steps, the slower first one included.
        evaluations: all evaluations.
        checkpoints: all checkpoints and the output at the end.
    """

    startup: float
    steps: float
    evaluations: float
    checkpoints: float

    @property
    def training(self) -> float:
        """What ``train_seconds`` of run.json will be, about."""
        return self.steps + self.evaluations + self.checkpoints

    @property
    def total(self) -> float:
        """Everything."""
        return self.startup + self.training


def project(
    schedule: Schedule,
    step: StepCost,
    evaluation: EvaluationCost | None,
    *,
    evaluation_images: int,
    checkpoint_seconds: float,
    startup_seconds: float,
) -> Projection:
    """The time of a run from what its parts take.

    Args:
        schedule: how often.
        step: how long a step.
        evaluation: how long an evaluation, of fewer images.
        evaluation_images: of an evaluation of the run.
        checkpoint_seconds: how long a checkpoint.
        startup_seconds: before training begins.
    """
    evaluations = 0.0
    if evaluation is not None and schedule.evaluations:
        each = evaluation.seconds * evaluation_images / evaluation.images
        evaluations = schedule.evaluations * each + evaluation.first_seconds
    return Projection(
        startup_seconds,
        step.first_seconds + (schedule.steps - 1) * step.seconds,
        evaluations,
        (schedule.checkpoints + 1) * checkpoint_seconds,
    )


@dataclass(frozen=True)
class Alternative:
    """Another setting and what was measured of it; no cost where it ran out of memory.

    Attributes:
        settings: keys that differ from the recipe.
        cost: of its steps.
    """

    settings: dict[str, Any]
    cost: StepCost | None

    @property
    def name(self) -> str:
        """The settings as they are written in a recipe."""
        return ", ".join(f"{name}: {str(value).lower()}" for name, value in self.settings.items())


NOTABLE = 1.1
"""Ratio of speeds below which a difference of a few steps is taken for noise."""


@dataclass(frozen=True)
class Plan:
    """Everything that was measured and what follows from it.

    Attributes:
        stage: "sft" or "scst".
        device: its name.
        device_gb: its memory.
        schedule: what the run does.
        step: what a step takes; None when it does not fit into memory.
        evaluation: what an evaluation takes; None without evaluations.
        projection: of the whole run; None when it does not fit.
        alternatives: other settings.
        hints: settings that were not measured.
    """

    stage: str
    device: str
    device_gb: float
    schedule: Schedule
    step: StepCost | None
    evaluation: EvaluationCost | None
    projection: Projection | None
    alternatives: list[Alternative]
    hints: list[str]

    @property
    def peak_gb(self) -> float | None:
        """Most memory of a step or an evaluation."""
        return peak_of(self.step, self.evaluation) if self.step else None

    @property
    def fits(self) -> bool:
        """Whether steps and evaluations ran, within the memory that there is."""
        peak = self.peak_gb
        return peak is not None and peak <= self.device_gb

    @property
    def advice(self) -> list[str]:
        """What to change for speed, or to fit."""
        if self.step is None:
            fitting = [other.name for other in self.alternatives if other.cost]
            return [f"{name} fits" for name in fitting] + self.hints
        lines = []
        for other in self.alternatives:
            ratio = self.speed_of(other)
            if ratio >= NOTABLE:
                lines.append(f"{other.name}: {ratio:.2f}x the images per {self.clock}")
        return lines + self.hints

    @property
    def clock(self) -> str:
        """What speeds are compared by."""
        return "CPU second" if self.device == "CPU" else "second"

    def speed_of(self, other: Alternative) -> float:
        """Images per second over the recipe's. On the CPU by CPU time: the machine may have other work."""
        if other.cost is None or self.step is None:
            return 0.0
        recipe, others = (
            c.cpu_seconds / c.images if self.device == "CPU" else c.seconds / c.images
            for c in (self.step, other.cost)
        )
        return recipe / others

    def record(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        step = self.step
        return {
            "stage": self.stage,
            "device": self.device,
            "device_gb": round(self.device_gb, 2),
            "fits": self.fits,
            "peak_gb": self.peak_gb,
            "images_per_s": step.images_per_s if step else None,
            "step": asdict(step) | {"shares": _shares(step)} if step else None,
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "schedule": asdict(self.schedule),
            "projected_seconds": self.projection.total if self.projection else None,
            "projection": asdict(self.projection) | {"training": self.projection.training}
            if self.projection
            else None,
            "alternatives": [
                {
                    "settings": other.settings,
                    "fits": other.cost is not None,
                    "images_per_s": other.cost.images_per_s if other.cost else None,
                    "ratio": self.speed_of(other),
                    "peak_gb": peak_of(other.cost) if other.cost else None,
                    "step": asdict(other.cost) if other.cost else None,
                }
                for other in self.alternatives
            ],
            "advice": self.advice,
        }


def peak_of(step: StepCost, evaluation: EvaluationCost | None = None) -> float:
    """Peak memory of a step and, if given, an evaluation, in GB."""
    return max([*step.peak_gb.values(), evaluation.peak_gb if evaluation else 0.0])


def _shares(step: StepCost) -> dict[str, float]:
    return {name: seconds / step.seconds for name, seconds in step.phases.items()}


def device_of(device: torch.device) -> tuple[str, float]:
    """Name and memory of a device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return name, device_memory_gb(device)
