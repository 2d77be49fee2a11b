"""The collapse watch: its rules on literal numbers, and runs that collapse."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from scst.training.monitors.collapse_monitor import CollapseMonitor, CollapseRule, has_collapsed

HEALTHY = {"entropy": 1.0, "caption_length": 10.0, "most_common_caption": 0.2, "repetition_rate": 0.1}


@pytest.mark.parametrize(
    ("metric", "first", "now", "collapsed"),
    [
        ("entropy", 2.0, 0.09, True),  # 0.05 * 2.0 = 0.1
        ("entropy", 2.0, 0.11, False),
        ("caption_length", 10.0, 1.9, True),  # 0.2 * 10 = 2
        ("caption_length", 10.0, 2.1, False),
        ("most_common_caption", 0.2, 0.96, True),
        ("most_common_caption", 0.2, 0.94, False),
        ("most_common_caption", 1.0, 1.0, False),  # as it was: one caption a step
        ("repetition_rate", 0.1, 0.61, True),  # 0.1 + 0.5 = 0.6
        ("repetition_rate", 0.1, 0.59, False),
    ],
)
def test_rules_literally(metric, first, now, collapsed):
    assert has_collapsed(metric, first, now) is collapsed


def test_patience_and_recovery():
    watch = CollapseRule(patience=2)
    assert watch.observe(1, HEALTHY) == []
    assert watch.observe(2, HEALTHY | {"entropy": 0.01}) == []
    assert watch.observe(3, HEALTHY) == []  # recovered: the count begins again
    assert watch.observe(4, HEALTHY | {"entropy": 0.01}) == []
    (alarm,) = watch.observe(5, HEALTHY | {"entropy": 0.01})
    assert (alarm.metric, alarm.step, alarm.values) == ("entropy", 5, (1.0, 0.01))
    assert watch.observe(6, HEALTHY | {"entropy": 0.01}) == []  # raised once
    assert watch.healthy_step == 3


def test_state_survives_json():
    watch, resumed = CollapseRule(2), CollapseRule(2)
    for step, length in ((1, 10.0), (2, 0.0)):
        watch.observe(step, {"caption_length": length})
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert resumed.observe(3, {"caption_length": 0.0}) == watch.observe(3, {"caption_length": 0.0}) != []
    assert resumed.state_dict() == watch.state_dict()


SCENES = {
    "model_name_or_path": "embedded:scenes-paligemma",
    "dataset": "embedded:scenes",
    "max_new_tokens": 16,
    "max_train_images": 16,
    "baseline": "leave_one_out",
    "per_device_train_batch_size": 8,
    "num_samples": 3,
    "learning_rate": 3e-2,
    "lr_scheduler_type": "constant",
    "max_steps": 40,
    "save_strategy": "steps",
    "save_steps": 1,
}


def silence(completions, **columns):
    """The fewer words, the better."""
    return [-float(len(text.split())) for text in completions]


def test_a_policy_that_falls_silent_is_stopped_and_restored(run_stage, tmp_path, capsys):
    keys = SCENES | {"max_steps": 1, "learning_rate": 1e-9, "save_strategy": "no"}
    for name in ("baseline", "num_samples"):
        keys.pop(name)
    run_stage("sft", output_dir=str(tmp_path / "sft"), **keys)
    trainer = run_stage(
        "scst",
        output_dir=str(tmp_path / "out"),
        adapter=str(tmp_path / "sft"),
        rewards=[{"import_path": "tests.training.test_collapse:silence"}],
        watch_action="stop",
        **SCENES,
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert trainer.state.global_step < 40
    assert any(alarm.startswith("collapse at step") for alarm in record["alarms"])
    assert "ALARM" in capsys.readouterr().out
    (rule,) = [m.rule for m in trainer.monitors if isinstance(m, CollapseMonitor)]
    kept = load_file(tmp_path / "out" / f"checkpoint-{rule.healthy_step}" / "adapter_model.safetensors")
    final = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert 0 < rule.healthy_step < trainer.state.global_step
    assert all(torch.equal(kept[name], final[name]) for name in final)
