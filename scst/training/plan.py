"""Plans a run: measures a few real steps and projects the time and memory of the whole run."""

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
"""Name of the time of a step outside the measured phases: reading images, optimizer, logging."""


@dataclass(frozen=True)
class StepCost:
    """The cost of one optimizer step, averaged over several.

    Attributes:
        images: images of one step, over all processes.
        seconds: wall-clock time from the end of one step to the end of the next.
        cpu_seconds: CPU time of this process, summed over its threads.
        first_seconds: wall-clock time from the start of training to the end of the first step.
        phases: seconds by phase, :data:`OTHER` included.
        peak_gb: peak memory by phase, in GB as :class:`scst.training.phase_meter.PhaseMeter` counts it.
        micro_batches: images per pass, for the phases in which the whole micro-batch did not fit.
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
        """Training images per second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of one evaluation.

    Attributes:
        images: number of images that the measured evaluation captioned.
        seconds: wall-clock time of that evaluation.
        first_seconds: additional seconds of the first evaluation, e.g. to start a scorer.
        peak_gb: peak memory in GB.
    """

    images: int
    seconds: float
    first_seconds: float
    peak_gb: float


@dataclass(frozen=True)
class Schedule:
    """Number of steps, evaluations (one before the first step included) and checkpoints of a run."""

    steps: int
    evaluations: int
    checkpoints: int


def schedule_of(args: TrainingArguments, steps: int, steps_per_epoch: int) -> Schedule:
    """Count the evaluations and checkpoints of a run.

    Args:
        args: the training arguments.
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the training images.
    """
    # The library's own callback decides when to evaluate and save; asking it covers every strategy.
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
    """Records when steps end, and clears the phase meter after the ``warm_up`` steps.

    Attributes:
        ends: (wall-clock, CPU) seconds at the end of every step.
    """

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
    """Train for a few steps, measure them, and restore the adapter.

    Args:
        trainer: a new trainer of either stage. Its arguments are changed: it neither evaluates nor saves.
        steps: number of measured steps.
        warm_up: number of steps before them, which are not measured.
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
    """Evaluate twice on the trainer's validation images. Returns None for a trainer without validation.

    The first evaluation also starts scorers; the second is what every later one costs.
    """
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
    """Write a checkpoint to the output folder; returns seconds. Call :func:`measure_steps` first."""
    started = time.perf_counter()
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Projection:
    """Projected seconds of a whole run, by what they are spent on.

    Attributes:
        startup: imports, data and model, until training begins.
        steps: all optimizer steps, the slower first one included.
        evaluations: all evaluations.
        checkpoints: all checkpoints, and the output at the end of the run.
    """

    startup: float
    steps: float
    evaluations: float
    checkpoints: float

    @property
    def training(self) -> float:
        """The projection of ``train_seconds`` in run.json."""
        return self.steps + self.evaluations + self.checkpoints

    @property
    def total(self) -> float:
        """Seconds from the start of the command to its end."""
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
    """Project the time of a run from its schedule and measured costs.

    Args:
        schedule: number of steps, evaluations and checkpoints.
        step: measured cost of a step.
        evaluation: measured cost of an evaluation, possibly of fewer images than the run evaluates.
        evaluation_images: images of every evaluation of the run.
        checkpoint_seconds: measured time of a checkpoint.
        startup_seconds: time before training begins.
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
    """Another setting of the recipe and its measured cost.

    Attributes:
        settings: keys that differ from the recipe, and their values.
        cost: cost of a step; None when it ran out of memory.
    """

    settings: dict[str, Any]
    cost: StepCost | None

    @property
    def name(self) -> str:
        """The settings as they are written in a recipe."""
        return ", ".join(f"{name}: {str(value).lower()}" for name, value in self.settings.items())


NOTABLE = 1.1
"""Smallest ratio of speeds that is reported; below it the difference over a few steps is noise."""


@dataclass(frozen=True)
class Plan:
    """The measurements of a recipe and its alternatives, with the projection and advice made from them.

    Attributes:
        stage: "sft" or "scst".
        device: name of the device.
        device_gb: memory of the device in GB.
        schedule: number of steps, evaluations and checkpoints of the run.
        step: cost of a step; None when it does not fit into memory.
        evaluation: cost of an evaluation; None without evaluations.
        projection: time of the whole run; None when a step does not fit into memory.
        alternatives: other settings that were measured.
        hints: advice about settings that were not measured.
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
        """Peak memory in GB of a step or an evaluation; None when a step does not fit."""
        return peak_of(self.step, self.evaluation) if self.step else None

    @property
    def fits(self) -> bool:
        """Whether a step ran, and steps and evaluations stay within the memory of the device."""
        peak = self.peak_gb
        return peak is not None and peak <= self.device_gb

    @property
    def advice(self) -> list[str]:
        """Lines of advice: which settings are faster, or which fit when the recipe does not."""
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
        """The unit of time that speeds are compared in."""
        return "CPU second" if self.device == "CPU" else "second"

    def speed_of(self, other: Alternative) -> float:
        """Images per second of another setting divided by the recipe's; 0 when either does not fit.

        On the CPU speeds are per second of CPU time, because other programs may use the machine meanwhile.
        """
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
    """Name of a device and its memory in GB."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return name, device_memory_gb(device)
