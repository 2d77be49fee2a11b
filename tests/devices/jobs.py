"""What the processes of these tests do."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from launch import build
from launch.arguments import Arguments
from scst.config import build_recipe


def train(stage: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """A training stage as its launch script runs it; returns what it logged."""
    torch.set_num_threads(1)
    trainers = []
    run_training = build.run_training

    def recording(trainer: Any, *args: Any, **kwargs: Any) -> None:
        trainers.append(trainer)
        run_training(trainer, *args, **kwargs)

    build.run_training = recording
    try:
        importlib.import_module(f"launch.{stage}").run(Arguments(build_recipe(stage, keys)))
    finally:
        build.run_training = run_training
    return trainers[0].state.log_history


def launch_script(stage: str, keys: dict[str, Any], positional: list[str] | None = None) -> None:
    """Another launch script, as it runs itself."""
    torch.set_num_threads(1)
    arguments = Arguments(build_recipe(stage, keys), positional=positional or [])
    importlib.import_module(f"launch.{stage}").run(arguments)
