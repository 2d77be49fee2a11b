"""A recipe can make the program run an ``import_path`` reward, and no other code; nobody is told of a run."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

from rewards.errors import RewardError
from rewards.registry import REWARDS, build_rewards
from scst.config.reader import read_recipe_file
from scst.errors import RecipeError
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

ASKED_NOBODY = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")

RECORD_CONNECTIONS = """
import os, socket

def record(*address, **keywords):
    with open(os.environ["CONNECTIONS"], "a") as file:
        print(*address[:2], file=file)
    raise OSError("this test has no network")

socket.getaddrinfo = record
"""


def test_yaml_tags_build_nothing(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"prompt: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'executed'}]\n")
    with pytest.raises(RecipeError, match="no readable YAML"):
        read_recipe_file(recipe)
    assert not (tmp_path / "executed").exists()


def test_the_log_says_which_code_a_recipe_runs(tmp_path, monkeypatch, caplog):
    (tmp_path / "my_rewards.py").write_text("def brevity(completions, **columns): return [0.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    build_rewards([{"name": "length", "kwargs": {"target": 9}}])
    assert caplog.messages == []
    build_rewards([{"import_path": "my_rewards:brevity"}])
    assert caplog.messages == [f"import_path 'my_rewards:brevity' runs code of {tmp_path / 'my_rewards.py'}"]
    assert caplog.records[0].levelname == "WARNING", "shown on the terminal without any set-up of logging"


def test_a_reward_cannot_name_a_program(tmp_path):
    """``kwargs`` come from the recipe; METEOR once took the Java to start from them."""
    program = tmp_path / "java"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    program.chmod(0o755)
    with pytest.raises(RewardError, match="unexpected keyword argument 'java'"):
        build_rewards([{"name": "meteor", "kwargs": {"java": str(program)}}])
    for name, constructor in REWARDS.items():
        asked = set(inspect.signature(constructor).parameters)
        assert not asked & {"java", "command", "program", "executable", "jar", "folder"}, name
    assert not (tmp_path / "executed").exists()


def python(tmp_path, *arguments, **environment) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run Python with a network that notes who was looked up; return the hosts too."""
    (tmp_path / "sitecustomize.py").write_text(RECORD_CONNECTIONS)
    kept = {name: value for name, value in os.environ.items() if name not in ASKED_NOBODY}
    added = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "CONNECTIONS": str(tmp_path / "connections")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=kept | added | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    hosts = tmp_path / "connections"
    return done, hosts.read_text().splitlines() if hosts.exists() else []


SEND = """
import scst.cli
from huggingface_hub.utils import _telemetry
_telemetry.send_telemetry("scst", library_name="trl")
_telemetry._TELEMETRY_QUEUE.join()
"""


@pytest.mark.slow
def test_usage_reports_are_off_unless_asked_for(tmp_path):
    """What TRL's trainers call when they are built, with this project's default and against it."""
    assert python(tmp_path, "-c", SEND)[1] == []
    done, hosts = python(tmp_path, "-c", SEND, HF_HUB_DISABLE_TELEMETRY="0")
    assert done.returncode == 0, done.stderr
    assert any("huggingface.co" in host for host in hosts), "the recorder works"


@pytest.mark.slow
def test_a_training_run_speaks_to_nobody(world, tmp_path):
    recipe = (
        f"launch/sft.py --config quickstart/sft --model_name_or_path {world / 'model'} "
        f"--dataset {world / 'data'} --max_steps 1 --precision fp32 --quantization none "
        "--save_strategy no --max_new_tokens 12"
    )
    done, hosts = python(tmp_path, *recipe.split(), "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert hosts == []
