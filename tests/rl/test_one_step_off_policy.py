"""Rewards beside the next rollout: what is learned from when, and the correction for it."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import RewardError
from scst.objective.losses import importance_ratios
from scst.rl.sampler import Sampler
from tests.support.waiting import PATIENCE_S

HERE = "tests.rl.test_one_step_off_policy"
SEEN: list[list[str]] = []
"""Captions of every call of the reward."""


def watched_variety(completions, log_metric=None, **columns):
    SEEN.append(list(completions))
    log_metric("calls", len(SEEN))
    return [float(len(set(text.split()))) for text in completions]


def fails(completions, **columns):
    raise OSError("no answer")


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@pytest.fixture
def run(run_stage, sft_adapter, tmp_path):
    def run(**keys):
        keys = {"one_step_off_policy": True, "rewards": [{"import_path": f"{HERE}:watched_variety"}]} | keys
        usual = {"output_dir": str(tmp_path / "out"), "optim": "sgd", "overwrite": True}
        return run_stage("scst", adapter=str(sft_adapter), **usual | keys)

    return run


def steps(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def test_the_first_step_samples_and_the_others_learn_from_the_one_before(run, sft_adapter, tmp_path):
    trainer = run(max_steps=1)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (sft_adapter, tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert steps(trainer)[0]["loss"] == 0.0
    assert trainer.last_step is None
    SEEN.clear()
    trainer = run(max_steps=4)
    learned_from = [text for group in trainer.last_step.rollout.captions for text in group]
    assert learned_from == SEEN[2][:12]


@pytest.mark.parametrize("late", [False, True])
def test_rewards_are_computed_beside_the_next_rollout(run, monkeypatch, late):
    """Each reward waits for the rollout of the next step to begin; the usual step makes it wait in vain."""
    rollouts, met, changed = [], [], threading.Condition()
    sample = Sampler.sample

    def counted_sample(self, *arguments):
        with changed:
            rollouts.append(arguments[3])
            changed.notify_all()
        return sample(self, *arguments)

    def waiting(completions, **columns):
        with changed:
            met.append(
                changed.wait_for(
                    lambda: len(rollouts) >= len(met) + 2, timeout=PATIENCE_S if late and not met else 0
                )
            )
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(Sampler, "sample", counted_sample)
    monkeypatch.setattr(f"{HERE}.watched_variety", waiting)
    run(max_steps=2, one_step_off_policy=late)
    assert met[0] == late


def test_ratios_are_one_until_the_policy_changes(run):
    first, *others = steps(run(max_steps=4))[1:]
    assert first["importance_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["logprob_gap"] < 1e-5
    assert all(abs(log["importance_ratio"] - 1.0) > 1e-4 for log in others)
    assert all(log["importance_ratio_max"] >= log["importance_ratio"] for log in others)
    assert [log["calls"] for log in [first, *others]] == [1, 2, 3]


def test_the_loss_weighs_with_the_ratios(run):
    """Of the last step: -ratio * advantage * log p(caption), the ratio cut at the limit."""
    trainer = run(max_steps=3)
    record = trainer.last_step
    policy, policy_loss = trainer.policy_of(trainer.model), trainer.policy_loss
    for cap in (2.0, 1.0):
        policy_loss.objective = replace(policy_loss.objective, max_importance_ratio=cap)
        scores = policy_loss._score(policy, record.rollout)
        sampled = record.rollout.sampled_logprobs
        ratios = importance_ratios(scores.logprobs, sampled, record.rollout.completion_mask)
        assert ratios.max() > 1.0
        expected = -ratios.clamp(max=cap) * record.advantages * scores.logprobs.sum(-1)
        losses = policy_loss(policy, record.rollout, record.advantages, record.columns).losses
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_without_the_prompts_gradient_the_cache_is_made_anew(run):
    """That of the rollout belongs to the policy before the last update."""
    trainer = run(max_steps=3, prompt_gradient=False)
    record, policy, policy_loss = trainer.last_step, trainer.policy_of(trainer.model), trainer.policy_loss
    assert record.rollout.prompt_cache is None
    whole = policy_loss._score(policy, record.rollout)
    cached = policy_loss._score(policy, policy_loss._with_prompt_cache(policy, record.rollout))
    torch.testing.assert_close(cached.logprobs, whole.logprobs, rtol=0, atol=1e-5)


def test_a_failing_reward_still_stops_the_run(run):
    with pytest.raises(RewardError, match=r"'fails' raised OSError: no answer"):
        run(max_steps=3, rewards=[{"import_path": f"{HERE}:fails"}])


@pytest.mark.parametrize("prompt_gradient", [True, False])
def test_a_resumed_run_learns_from_the_rollout_that_waited(run, tmp_path, prompt_gradient):
    """Bit for bit: stopped after two steps, with a third rollout's rewards still to be learned from."""
    keys = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    keys |= {"prompt_gradient": prompt_gradient}
    whole = run(**keys, output_dir=str(tmp_path / "whole"))
    parts = run(**keys, output_dir=str(tmp_path / "parts"))
    for folder in (tmp_path / "parts").glob("checkpoint-[!2]"):
        shutil.rmtree(folder)
    saved = torch.load(tmp_path / "parts" / "checkpoint-2" / "parts-0.pt", weights_only=True)
    assert len(saved["rewarder"]["pending"]["image_ids"]) == 4
    SEEN.clear()
    parts = run(**keys, output_dir=str(tmp_path / "parts"), overwrite=False, resume=True)
    assert len(SEEN) == 4, "the one that waited, and those of three steps"
    names = {name for name, p in whole.model.named_parameters() if p.requires_grad}
    before, after = (dict(trainer.model.named_parameters()) for trainer in (whole, parts))
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_a_short_last_batch_is_divided_by_its_own_images(run):
    """12 images, 8 at a time: the 4 of an epoch's second step are learned from beside 8 others."""
    trainer = run(max_steps=3, per_device_train_batch_size=8, learning_rate=0.0)
    record, policy = trainer.last_step, trainer.policy_of(trainer.model)
    assert record.advantages.shape == (4, 3)
    losses = trainer.policy_loss(policy, record.rollout, record.advantages, record.columns).losses
    assert losses.sum().item() / 12 == pytest.approx(steps(trainer)[2]["loss"], abs=1e-4)
    assert losses.sum().abs() > 1
