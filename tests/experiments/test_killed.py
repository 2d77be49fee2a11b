"""The command on a real model: killed in a training, gone on with, one kind of cell failing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.commands import call
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_killed_and_gone_on_with(config, tmp_path, run_stage, capsys):
    """SIGKILL in the middle of a training; the training that it leaves behind saves and ends."""
    command = [sys.executable, "launch/matrix.py", "--config", str(config)]
    victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = "out/trained/*/checkpoint-*/complete.json"
    wait_until(lambda: list(tmp_path.glob(saved)) or victim.poll() is not None, "a checkpoint")
    assert victim.poll() is None, "ended by itself"
    (first, *_) = tmp_path.glob(saved)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    training = first.parents[1]
    assert not (training / "run.json").is_file()

    assert call("matrix", "--config", str(config), "--dry_run") == 0
    for cell in yaml.safe_load(capsys.readouterr().out)["cells"]:
        if cell["max_new_tokens"] == 2:  # what it writes finds its place taken
            (tmp_path / "out" / "evaluated" / cell["folder"] / "metrics.json").mkdir(parents=True)
    code = call("matrix", "--config", str(config))
    told = " ".join(capsys.readouterr().err.split())
    assert code == 1, told
    assert "2 of 4 cells have no result" in told
    assert "metrics.json" in told
    assert "resuming from" in (training / "log.txt").read_text()
    cells = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["complete", "failed"] * 2

    keys = json.loads((training / "run.json").read_text())["recipe"]
    whole = run_stage("sft", **keys | {"output_dir": str(tmp_path / "whole"), "resume": False})
    assert whole.state.global_step == 12
    one, other = (
        load_file(folder / "adapter_model.safetensors") for folder in (training, tmp_path / "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)

    recipe = tmp_path / "out" / cells[0]["folder"] / "recipe.yaml"
    direct = ["--adapter", str(tmp_path / "whole"), "--output_dir", str(tmp_path / "direct")]
    assert call("evaluate", "--config", str(recipe), *direct) == 0
    assert json.loads((tmp_path / "direct" / "metrics.json").read_text()) == cells[0]["metrics"]
