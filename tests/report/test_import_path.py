"""What serves few stays out of the way of the rest: training imports neither charts nor explanations."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # an import of torch in a process of its own takes seconds

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


ROOMS = ("evaluation", "experiments", "explain", "report", "data/preparation")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_plain_values_see_no_recipes(room):
    """Imports inside functions count too."""
    for file in (ROOT / "scst" / room).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            above = [
                name for name in names if name and name.startswith(("scst.config", "scst.cli", "launch"))
            ]
            assert not above, f"{file.name} imports {above}"


def test_preparing_data_needs_nothing_above_it():
    for file in (ROOT / "scst" / "data" / "preparation").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "from scst.report" not in text, file.name
        assert "from scst.training" not in text, file.name
