"""The YAML files under recipes/."""

from __future__ import annotations

from pathlib import Path

from scst.config.recipes import RECIPES
from tests.support.paths import ROOT

RECIPES_FOLDER = ROOT / "recipes"
REPORTS = RECIPES_FOLDER / "reports"
"""Recipes of published reports."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def stage_of(path: Path) -> str:
    """The stage named by a recipe's file name: ``mix-r16-sft.yaml`` is one of ``sft``."""
    stages = [stage for stage in RECIPES if stage in path.stem.split("-")]
    assert len(stages) == 1, f"{name_of(path)}: the file name must hold one of {', '.join(RECIPES)}"
    return stages[0]
