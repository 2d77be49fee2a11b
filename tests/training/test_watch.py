"""The reward-hacking watch: its rule on literal numbers, and a run that games a length reward."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from scst.config.checks import check_recipe
from scst.config.reader import build_recipe
from scst.errors import RecipeError
from scst.training.monitors.hacking_monitor import HackingRule
from tests.support.stages import adapter_weights


def observe(watch: HackingRule, step: int, reward: float, value: float, spread: float = 0.01):
    """An evaluation whose resampled values lie within ``spread`` of the value."""
    resampled = [value - spread, value, value + spread]
    return watch.observe(step, reward, {"cider_d": value}, {"cider_d": resampled})


def test_reward_up_and_metric_down_twice_is_an_alarm():
    watch = HackingRule({"cider_d": 1}, patience=2)
    assert observe(watch, 0, reward=0.0, value=1.0) == []
    assert observe(watch, 10, reward=0.5, value=0.9) == []  # once
    (alarm,) = observe(watch, 20, reward=0.6, value=0.8)
    assert (alarm.metric, alarm.step, alarm.best_step) == ("cider_d", 20, 0)
    assert (alarm.values, alarm.rewards) == ((1.0, 0.8), (0.0, 0.6))
    assert "rose from 0.000 to 0.600, but cider_d went from 1.000 to 0.800" in str(alarm)
    assert watch.trusted_step == 0
    assert observe(watch, 30, reward=0.7, value=0.7) == []  # raised once, not at every evaluation
    assert watch.alarms == [alarm]


@pytest.mark.parametrize(
    ("reward", "value"),
    [
        (0.5, 1.1),  # both rise: training works
        (-0.5, 0.5),  # both fall: training fails, but nothing is gamed
        (0.5, 0.995),  # the metric falls by less than its bootstrap error
    ],
)
def test_no_alarm(reward, value):
    watch = HackingRule({"cider_d": 1}, patience=1)
    observe(watch, 0, reward=0.0, value=1.0)
    # resamples of the difference: -0.005 and 0.005 beside the mean
    resampled = [value - 0.02, value, value + 0.02]
    assert watch.observe(10, reward, {"cider_d": value}, {"cider_d": resampled}) == []
    assert watch.trusted_step == 10


def test_a_recovery_starts_the_count_again():
    watch = HackingRule({"cider_d": 1}, patience=2)
    for step, value in ((0, 1.0), (10, 0.8), (20, 1.0), (30, 0.8)):
        assert observe(watch, step, reward=step / 10, value=value) == []
    assert observe(watch, 40, reward=4.0, value=0.8) != []


def test_metrics_that_should_be_low():
    watch = HackingRule({"repetition_rate": -1}, patience=1)
    watch.observe(0, 0.0, {"repetition_rate": 0.0}, {"repetition_rate": [0.0, 0.0]})
    (alarm,) = watch.observe(5, 1.0, {"repetition_rate": 0.4}, {"repetition_rate": [0.3, 0.5]})
    assert alarm.metric == "repetition_rate"


def test_an_evaluation_that_is_repeated_says_nothing():
    """A resumed run evaluates at its first step again."""
    watch = HackingRule({"cider_d": 1}, patience=2)
    observe(watch, 0, 0.0, 1.0)
    for _ in range(3):
        assert observe(watch, 10, 1.0, 0.5) == []


def test_state_survives_json():
    watch, resumed = HackingRule({"cider_d": 1}, 2), HackingRule({"cider_d": 1}, 2)
    for step, value in ((0, 1.0), (10, 0.8)):
        observe(watch, step, reward=step / 10, value=value)
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    first, second = observe(watch, 20, 2.0, 0.7), observe(resumed, 20, 2.0, 0.7)
    assert first == second
    assert len(first) == 1
    assert json.loads(json.dumps(watch.state_dict())) == json.loads(json.dumps(resumed.state_dict()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"watched_metrics": ["cider_e"]}, "unknown"),
        ({"watched_metrics": ["length"]}, "neither more nor less is better"),
        ({"watched_metrics": ["bertscore"]}, "no model given"),
        ({"watch_patience": 0}, "expected 1 or more"),
    ],
)
def test_wrong_settings_are_refused(keys, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(build_recipe("scst", {"adapter": "x", "dataset": "embedded:scenes"} | keys))


SCENES = {
    "model_name_or_path": "embedded:scenes-paligemma",
    "dataset": "embedded:scenes",
    "max_new_tokens": 24,
    "max_train_images": 64,
}
"""A model that writes real sentences: a random one has nothing to lose."""


@pytest.fixture(scope="module")
def untrained(run_stage, tmp_path_factory):
    """An adapter that changes nothing yet."""
    folder = tmp_path_factory.mktemp("untrained") / "sft"
    run_stage("sft", output_dir=str(folder), **SCENES | {"max_steps": 1, "learning_rate": 1e-9})
    return folder


def gamed(adapter, output_dir, **keys):
    """SCST on caption length alone."""
    return SCENES | {
        "adapter": str(adapter),
        "output_dir": str(output_dir),
        "rewards": [{"name": "length", "kwargs": {"target": 24}}],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "validation_images": 16,
        "validation_batch_size": 16,
        "watched_metrics": ["bleu_1", "repetition_rate"],
        "baseline": "leave_one_out",
        "num_samples": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 30,
        **keys,
    }


def test_a_run_that_games_the_length_reward_is_stopped_and_restored(run_stage, untrained, tmp_path, capsys):
    trainer = run_stage("scst", **gamed(untrained, tmp_path / "out", watch_action="stop"))
    shown = " ".join(capsys.readouterr().out.split())
    history = {e["step"]: e for e in trainer.state.log_history if "eval_reward" in e}
    last, record = trainer.state.global_step, json.loads((tmp_path / "out" / "run.json").read_text())
    assert last < 30
    assert "ALARM" in shown
    assert history[last]["eval_reward"] > history[0]["eval_reward"]
    assert history[last]["eval_repetition_rate"] > history[0]["eval_repetition_rate"]
    assert any("reward hacking" in alarm for alarm in record["alarms"])
    kept, final = adapter_weights(tmp_path / "out" / "trusted"), adapter_weights(tmp_path / "out")
    assert all(torch.equal(kept[name], final[name]) for name in final)
    assert f"stopped at step {last}; the adapter is that of step" in shown


def saved_state(folder):
    """What the monitor wrote with the checkpoint of step 4."""
    return torch.load(folder / "checkpoint-4" / "parts-0.pt", weights_only=True)["hacking_monitor"]


def test_by_default_an_alarm_only_speaks(run_stage, untrained, tmp_path, capsys):
    keys = gamed(
        untrained, tmp_path / "out", save_strategy="steps", save_steps=4, max_steps=8, watch_patience=1
    )
    trainer = run_stage("scst", **keys)
    assert trainer.state.global_step == 8
    assert "ALARM" in capsys.readouterr().out
    assert saved_state(tmp_path / "out")["last_step"] == 4
    assert not (tmp_path / "out" / "trusted").exists()


def test_a_resumed_run_remembers_what_it_saw(run_stage, untrained, tmp_path):
    keys = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run_stage("scst", **gamed(untrained, tmp_path / "whole", **keys))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    half = run_stage("scst", **gamed(untrained, tmp_path / "half", resume=True, **keys))
    assert saved_state(tmp_path / "whole") == saved_state(tmp_path / "half")
    assert half.state.global_step == whole.state.global_step == 4


def test_a_clean_run_raises_no_alarm(run_stage, untrained, tmp_path, capsys):
    """The same watch on the reward that is meant."""
    keys = gamed(untrained, tmp_path / "out", rewards=[{"name": "cider_d"}], max_steps=4, learning_rate=1e-4)
    run_stage("scst", **keys)
    assert "ALARM" not in capsys.readouterr().out
    assert "alarms" not in json.loads((tmp_path / "out" / "run.json").read_text())
