"""The direction of imports: launch -> stages -> parts -> ground; rewards stand on their own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = {
    "scst",
    "scst.training.checkpoints",
    "scst.config.reader",
    "scst.config.keys",
    "scst.config.recipes",
    "scst.errors",
    "scst.rollout.distribution",
    "scst.report.page",
    "scst.training.run_record",
    "scst.types",
}
PARTS = (
    "scst.data",
    "scst.training.memory",
    "scst.models",
    "scst.objective",
    "scst.distributed.processes",
    "scst.rollout",
)
STAGES = (
    "scst.sft.trainer",
    "scst.rl.trainer",
    "scst.training.plan",
    "scst.training.hacking_monitor",
    "scst.training.validation",
)
STAGES += (
    "scst.training.sharded_batches",
    "scst.rl.progress",
    "scst.evaluation",
    "scst.explain",
    "scst.training.non_finite",
    "scst.training.signals",
)
STAGES += ("scst.training.collapse_monitor", "scst.experiments")
CONTRACTS = ("document_frequencies", "errors", "metrics", "mixture", "text")
REWARD_CONTRACTS = {f"rewards.{name}" for name in CONTRACTS}
NEURAL = {f"rewards.{name}" for name in ("encoders", "clipscore", "sentence_similarity", "bertscore")}
"""Scorers with a model of their own; they import torch and transformers inside functions only."""


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def layer(module: str) -> int:
    """0 ground, 1 parts, 2 stages, 3 launch."""
    if module in GROUND:
        return 0
    if module.startswith(PARTS):
        return 1
    return 2 if module.startswith(STAGES) else 3


@pytest.mark.parametrize("module", modules("scst"))
def test_scst_imports_only_downwards(module):
    known = set(modules("scst"))
    for imported in imports(modules("scst")[module]) & known:
        assert layer(imported) <= layer(module), f"{module} imports {imported}"
    assert layer(module) < 3, f"{module} belongs to no layer: add it to this test"
    rewards = {name for name in imports(modules("scst")[module]) if name in modules("rewards")}
    assert rewards <= REWARD_CONTRACTS, "rewards and scorers are injected"
    assert not any(name.startswith("launch") for name in imports(modules("scst")[module]))


@pytest.mark.parametrize("module", modules("rewards"))
def test_rewards_stand_on_their_own(module):
    roots = {name.split(".")[0] for name in imports(modules("rewards")[module])}
    assert not roots & ({"scst", "launch"} | (set() if module in NEURAL else {"torch", "transformers"}))


def test_rewards_load_no_torch_until_a_model_is_asked_for():
    code = "import sys, rewards.registry, scst.metrics.suite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("script", ["sft", "scst", "evaluate", "caption", "score", "prepare", "matrix"])
def test_launch_scripts_are_thin(script):
    assert len((ROOT / "launch" / f"{script}.py").read_text().splitlines()) <= 60
