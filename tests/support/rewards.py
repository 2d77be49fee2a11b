"""Reward functions and mixtures of them."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward

CAPTIONS = ["a river", "a long road"]


NAN = math.nan


def mixture(*functions, weights=None, names=None) -> RewardMixture:
    weights = weights or [1.0] * len(functions)
    names = names or [f"reward_{i}" for i in range(len(functions))]
    return RewardMixture([WeightedReward(*entry) for entry in zip(names, functions, weights, strict=True)])


def constant(*values):
    """A reward function that answers with ``values``."""
    return lambda completions, **columns: list(values)


def equal(actual: list[float], expected: list[float]) -> bool:
    return len(actual) == len(expected) and all(
        a == e or (math.isnan(a) and math.isnan(e)) for a, e in zip(actual, expected, strict=True)
    )


def call(mixed: RewardMixture, **columns):
    return mixed(completions=CAPTIONS, image_id=["img_7", "img_8"], **columns)


class Recorder:
    """Rewards words; keeps and tells what a worker does."""

    def __init__(self):
        self.setups = []

    def setup(self, dataset):
        self.setups.append(dataset)

    def state_dict(self):
        return {"setups": self.setups, "process": os.getpid()}

    def load_state_dict(self, state):
        self.setups = state["setups"] * 2

    def write_tables(self, folder):
        (Path(folder) / f"table-{os.getpid()}").write_text(str(self.setups))

    def __call__(self, completions, trainer_state=None, log_metric=None, image=None, **columns):
        if log_metric is not None:
            log_metric("setups", len(self.setups))
            log_metric(name="step", value=trainer_state.global_step)
            log_metric("first_words", len(completions[0].split()))
            log_metric("own_process", os.getpid())
            log_metric("pixels", sum(picture.size[0] for picture in image))
        return [float(len(text.split())) or None for text in completions]


def hanging(completions, **columns):
    """Never answers; touches the file that ``SCST_TEST_HANGING`` names."""
    if file := os.environ.get("SCST_TEST_HANGING"):
        Path(file).touch()
    threading.Event().wait()
