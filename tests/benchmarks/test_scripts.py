"""Benchmarks start by path and as modules, and the small ones that no other test runs, run."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import start_warm

SCRIPTS = ("data", "explanations", "memory", "rewards", "rollout", "scaling", "scoring", "step")


def run(*command: str) -> str:
    """What a command writes to standard output."""
    result = start_warm(*command, PYTHONPATH="")
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_starts_by_path_and_as_a_module(name):
    assert "--json" in run(f"benchmarks/{name}.py", "--help")
    assert "--json" in run("-m", f"benchmarks.{name}", "--help")


@pytest.mark.slow
def test_by_path_the_package_of_rewards_is_found(tmp_path):
    """`benchmarks/rewards.py` has its name."""
    run(
        "benchmarks/rewards.py",
        "--sizes",
        "8",
        "--repetitions",
        "1",
        "--meteor",
        "0",
        "--json",
        str(tmp_path / "r"),
    )
    [size] = json.loads((tmp_path / "r").read_text())["sizes"]
    assert size["largest_difference"] < 1e-9


@pytest.mark.slow
def test_scaling_measures_rollout_and_step(tmp_path):
    """It checks itself that every caption was sampled and scored."""
    small = "--width 32 --vocabulary 2048 --samples 2 --image_tokens 4 --tokens 12 --repetitions 1"
    run(
        "benchmarks/scaling.py",
        *small.split(),
        "--sweeps",
        "images",
        "--json",
        str(tmp_path / "scaling.json"),
    )
    points = json.loads((tmp_path / "scaling.json").read_text())["sweeps"]["images"]
    assert [point["images"] for point in points] == [1, 2, 4, 8]
    assert all(0 < point["rollout_s"] < point["step_s"] for point in points)


@pytest.mark.slow
def test_memory_has_every_phase(tmp_path):
    small = "--width 32 --vocabulary 2048 --images 2 --samples 4 --tokens 12 --repetitions 1"
    run("benchmarks/memory.py", *small.split(), "--json", str(tmp_path / "memory.json"))
    assert set(json.loads((tmp_path / "memory.json").read_text())["phases"]) == {"rollout", "reward", "loss"}
