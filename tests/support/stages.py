"""Builders of both trainers on the small world, through the same builders that the launch scripts use."""

from __future__ import annotations

from typing import Any

import pytest

from scst.cli.arguments import Arguments
from scst.config.reader import build_recipe
from tests.support.commands import command_of
from tests.support.worlds import tiny_run, write_model, write_risc


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with `model`, `model2` (PaliGemma 2) and `data`."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_model(folder / "model2", version=2)
    write_risc(folder / "data")
    return folder


@pytest.fixture(scope="session")
def run_stage(world):
    """Run a stage in this process: ``run_stage("sft", output_dir=..., **keys)`` returns the trainer."""

    def run(stage: str, **keys):
        settings = tiny_run(world, max_new_tokens=12, learning_rate=1e-2, max_steps=4, seed=3)
        settings |= {"lora_rank": 4} if stage == "sft" else {"num_samples": 3, "table_steps": 0}
        return run_recipe(stage, settings | keys)

    return run


def run_recipe(stage: str, keys: dict[str, Any]) -> Any:
    """Train as the command of a stage does; returns the trainer."""
    return command_of(stage).run(Arguments(build_recipe(stage, keys)))


@pytest.fixture(scope="session")
def sft_adapter(run_stage, tmp_path_factory):
    """The output folder of a short supervised stage, trained once; to be read only."""
    folder = tmp_path_factory.mktemp("sft") / "sft-adapter"
    run_stage("sft", output_dir=str(folder))
    return folder


def adapter_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(actual, expected, tolerance: float = 1e-6) -> None:
    """The weights in two output folders agree to a tolerance."""
    import torch

    before, after = adapter_weights(expected), adapter_weights(actual)
    assert set(after) == set(before)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=tolerance)


def bits(tensor):
    """The bytes of a tensor: packed 4-bit weights look like NaN to a comparison of numbers."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
