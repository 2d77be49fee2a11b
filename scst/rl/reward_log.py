"""What rewards give to ``log_metric``, beside what the trainer measures itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scst.training.step_metrics import Mean, Statistic

TRAINER_METRICS = frozenset(
    ("loss", "grad_norm", "grad_clipped", "skipped_steps", "learning_rate", "epoch", "step", "kl")
)
TRAINER_PREFIXES = ("seconds_", "memory_gb_", "micro_batch_", "eval_", "train_", "total_", "images_per_s")
"""Names in the log that not every micro-batch reports, and how others begin."""


def logged_by_rewards(logged: Sequence[tuple[str, float]], num_images: int) -> dict[str, Statistic]:
    """Values of ``log_metric`` by name: the mean of those of a micro-batch, which counts by its images."""
    values: dict[str, list[float]] = {}
    for name, value in logged:  # one per call, and per worker of the reward
        values.setdefault(name, []).append(value)
    return {name: Mean(num_images * sum(v) / len(v), num_images) for name, v in values.items()}


def beside_own(logged: Mapping[str, Statistic], own: Mapping[str, Statistic]) -> dict[str, Statistic]:
    """What rewards have logged, under names that are free.

    A name of the trainer's own gets ``logged_`` before it: monitors and early stopping must read what the
    trainer has measured.

    Args:
        logged: by the name that the reward gave.
        own: what the trainer reports of the same micro-batch.
    """
    taken = TRAINER_METRICS | own.keys()
    return {
        f"logged_{name}" if name in taken or name.startswith(TRAINER_PREFIXES) else name: value
        for name, value in logged.items()
    }
