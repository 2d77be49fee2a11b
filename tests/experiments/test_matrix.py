"""The command itself: its dry run, and what it refuses before anything runs."""

from __future__ import annotations

import pytest
import yaml

from tests.support.commands import call


def test_dry_run_prints_every_run_and_loads_nothing(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scst.adapters.loaded.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    assert call("matrix", "--config", str(config), "--seeds", "[1, 2]", "--dry_run") == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert [run["keys"]["seed"] for run in plan["trainings"]] == [1, 2]
    assert {run["state"] for run in (*plan["trainings"], *plan["evaluations"])} == {"to do"}
    assert len(plan["cells"]) == 2 * 2 * 2
    assert not (tmp_path / "out").exists()


WRONG = {
    "unknown key": (["--modles", "[]"], "modles: unknown key; did you mean models"),
    "no model": (
        ["--common", "{model_name_or_path: /nowhere, dataset: embedded:scenes}"],
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
        "save_strategy: must be one of",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_2_before_anything_runs(case, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "scst.experiments.runner.Runner.run", lambda *a, **k: pytest.fail("a run was started")
    )
    flags, message = WRONG[case]
    assert call("matrix", "--config", str(config), *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
