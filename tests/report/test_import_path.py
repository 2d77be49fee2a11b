"""What serves few stays out of the way of the rest: training imports neither charts nor explanations."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

RARE = ("scst.explain", "scst.experiments", "scst.data.scenes", "captum", "skimage", "matplotlib")
"""Rooms and packages of single commands."""
CORE = ("scst.sft.trainer", "scst.rl.trainer", "scst.training.run", "scst.training.validation")


def loaded_by(*modules: str) -> set[str]:
    """What is in memory after an import of some modules in a fresh process, of ``RARE`` and torch."""
    names = {*RARE, "torch"}
    code = f"import sys, {', '.join(modules)}; print(*({names} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("modules", [CORE, ("scst.config.build_sft", "scst.config.build_rl")])
def test_training_loads_nothing_that_only_single_commands_need(modules):
    assert loaded_by(*modules) == {"torch"}


def test_the_rooms_of_pages_are_cheap_to_import():
    rooms = ("scst.report.data_page", "scst.report.curves", "scst.data.preparation.preparation")
    assert loaded_by(*rooms) == set(), "not even torch"
    assert "matplotlib" not in loaded_by("scst.experiments.figures", "scst.evaluation.evaluation")
