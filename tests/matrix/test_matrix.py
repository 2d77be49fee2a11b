"""The command on a real model: killed in a training, gone on with, one cell failing; help and exit codes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.launch.test_command_lines import call
from tests.trainer.conftest import run_stage, world  # noqa: F401  fixtures
from tests.worlds import write_recipe

PROMPTS = ["caption en", "Describe this image in detail:"]


@pytest.fixture
def config(world, tmp_path):  # noqa: F811
    common = {"model_name_or_path": str(world / "model"), "dataset": str(world / "data")}
    common |= {"precision": "fp32", "quantization": "none"}
    sft = {"stage": "sft", "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lora_rank": 4}
    sft |= {"max_steps": 12, "save_steps": 1, "save_total_limit": 2, "max_new_tokens": 12, "prompts": PROMPTS}
    return write_recipe(
        tmp_path / "matrix.yaml",
        models=[{"name": "lora", "stages": [sft]}],
        prompts=PROMPTS,
        max_new_tokens=[8, 2],
        seeds=[3],
        common=common,
        evaluate={"metrics": ["cider_d", "rouge_l"], "bootstrap_samples": 20, "min_new_tokens": 4},
        output_dir=str(tmp_path / "out"),
    )


def test_killed_and_gone_on_with(config, tmp_path, run_stage, world, capsys):  # noqa: F811
    """SIGKILL of the command in the middle of a training; the training it leaves behind saves and ends."""
    victim = multiprocessing.get_context("fork").Process(
        target=call, args=("matrix", "--config", str(config))
    )
    victim.start()
    until = time.monotonic() + 120
    while not (begun := list(tmp_path.glob("out/trained/*/checkpoint-*/complete.json"))):
        assert time.monotonic() < until, "no checkpoint in two minutes"
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    training = begun[0].parents[1]
    assert not (training / "run.json").is_file()

    code = call("matrix", "--config", str(config))
    told = capsys.readouterr()
    assert code == 1, told.err
    assert "2 of 4 cells have no result" in told.err
    assert "max_new_tokens=2" in told.err
    assert "resuming from" in (training / "log.txt").read_text()

    keys = json.loads((training / "run.json").read_text())["recipe"]
    whole = run_stage("sft", **keys | {"output_dir": str(tmp_path / "whole"), "resume": False})
    assert whole.state.global_step == 12
    one, other = (
        load_file(folder / "adapter_model.safetensors") for folder in (training, tmp_path / "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)

    cells = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    for cell in cells[::2]:
        recipe = tmp_path / "out" / cell["folder"] / "recipe.yaml"
        direct = {"adapter": str(tmp_path / "whole"), "output_dir": str(tmp_path / "direct")}
        flags = [part for name, value in direct.items() for part in (f"--{name}", value)]
        assert call("evaluate", "--config", str(recipe), *flags) == 0
        assert json.loads((tmp_path / "direct" / "metrics.json").read_text()) == cell["metrics"]
    assert [cell["state"] for cell in cells] == ["complete", "failed"] * 2


def test_dry_run_prints_every_run_and_loads_nothing(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scst.models.loading.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    assert call("matrix", "--config", str(config), "--seeds", "[1, 2]", "--dry_run") == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert [run["keys"]["seed"] for run in plan["trainings"]] == [1, 2]
    assert {run["state"] for run in (*plan["trainings"], *plan["evaluations"])} == {"to do"}
    assert len(plan["cells"]) == 2 * 2 * 2
    assert not (tmp_path / "out").exists()


WRONG = {
    "unknown key": (["--modles", "[]"], "modles: unknown key; did you mean models"),
    "no dataset": (
        ["--common", "{dataset: /nowhere, model_name_or_path: embedded:scenes-paligemma}"],
        "/nowhere",
    ),
    "no model": (
        ["--common", "{model_name_or_path: /nowhere}"],
        "no model configuration found at '/nowhere'",
    ),
    "no adapter": (["--models", "[{name: m, adapter: /nowhere}]"], "holds no adapter_config.json"),
    "metric": (["--evaluate", "{metrics: [cider_e]}"], "cider_e"),
    "main metric": (["--main_metric", "cider_e"], "main_metric: unknown 'cider_e'"),
    "scst setting": (
        [
            "--models",
            "[{name: m, stages: [{stage: sft}, {stage: scst, baseline: group, num_samples: 1}]}]",
        ],
        "num_samples: the group baseline needs at least 2, got 1",
    ),
    "training argument": (
        ["--models", "[{name: m, stages: [{stage: sft, save_strategy: sometimes}]}]"],
        "training arguments:",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_2_before_anything_runs(case, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scst.matrix.runner.Runner.run", lambda *a, **k: pytest.fail("a run was started"))
    flags, message = WRONG[case]
    assert call("matrix", "--config", str(config), *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
