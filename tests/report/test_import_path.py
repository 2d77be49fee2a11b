"""What serves few stays out of the way of the rest: training imports neither charts nor explanations."""

from __future__ import annotations

import ast

import pytest

from tests.support.commands import start
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # an import of torch in a process of its own takes seconds

RARE = ("scst.explain", "scst.experiments", "scst.data.scenes", "captum", "skimage", "matplotlib")
"""Rooms and packages of single commands."""
PAGES = ("scst.report.data_page", "scst.report.curves", "scst.data.preparation.preparation")
TRAINING = (
    *("scst.sft.trainer", "scst.rl.trainer", "scst.training.run", "scst.training.validation"),
    *("scst.config.build_sft", "scst.config.build_rl"),
)
TABLES = ("scst.experiments.figures", "scst.evaluation.evaluation")


@pytest.fixture(scope="module")
def loaded_by() -> list[set[str]]:
    """What of ``RARE`` and torch is in memory after pages, then training, then tables, in a fresh process."""
    code = "import importlib, sys\n"
    for modules in (PAGES, TRAINING, TABLES):
        code += f"for name in {modules}: importlib.import_module(name)\n"
        code += f"print(*({ {*RARE, 'torch'} } & set(sys.modules)))\n"
    done = start("-c", code)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_the_rooms_of_pages_are_cheap_to_import(loaded_by):
    assert loaded_by[0] == set(), "not even torch"


def test_training_loads_nothing_that_only_single_commands_need(loaded_by):
    assert loaded_by[1] == {"torch"}


def test_figures_are_drawn_without_a_picture_library_until_they_are_needed(loaded_by):
    assert "matplotlib" not in loaded_by[2]


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
