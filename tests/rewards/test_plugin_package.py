"""The example package: really installed, known by its announced name, and trained with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scst.adapters.lora import add_lora
from scst.models.pretrained import load_model
from tests.support.commands import start_warm
from tests.support.paths import ROOT
from tests.support.worlds import write_model, write_recipe, write_risc

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "reward_package"


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in the project's root; ``path`` holds what was installed."""
    return start_warm(*arguments, PYTHONPATH=os.pathsep.join(map(str, [ROOT, *([path] if path else [])])))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip installed the package into; the environment and the sources stay as they were."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    done = run(
        *("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"),
        *("--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A short self-critical run with the announced reward beside CIDEr-D."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_risc(folder / "data")
    model = load_model(str(folder / "model"), quantization="none", precision="fp32")
    add_lora(model, targets="decoder-attention", rank=4, alpha=8).save_pretrained(folder / "adapter")
    return write_recipe(
        folder / "recipe.yaml",
        model_name_or_path=str(folder / "model"),
        adapter=str(folder / "adapter"),
        dataset=str(folder / "data"),
        rewards=[
            {"name": "vocabulary", "weight": 0.5, "normalize": True, "kwargs": {"also": ["airport"]}},
            {"name": "cider_d"},
        ],
        quantization="none",
        max_new_tokens=12,
        num_samples=3,
        per_device_train_batch_size=4,
        max_steps=2,
        save_strategy="no",
        output_dir=str(folder / "out"),
    )


def test_a_run_with_the_installed_reward(installed, recipe):
    done = run("launch/scst.py", "--config", str(recipe), path=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((recipe.parent / "out" / "trainer_state.json").read_text())
    entries = [entry for entry in state["log_history"] if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert 0 <= entry["reward_vocabulary"] <= 1
        assert entry["reward_vocabulary_std"] > 0
        assert entry["words_outside_vocabulary"] > 0, "a random model makes up words"
        shares = entry["advantage_share_vocabulary"], entry["advantage_share_cider_d"]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0


def test_without_the_package_the_name_is_unknown(recipe):
    done = run("launch/scst.py", "--config", str(recipe), "--dry_run")
    assert done.returncode == 2
    assert "unknown reward 'vocabulary'; known: " in done.stderr


def test_its_own_tests_pass(installed):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), path=installed)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
