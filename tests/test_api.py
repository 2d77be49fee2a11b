"""`import scst`, both levels: the six lines of a notebook, and the trainers with their parts by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import transformers
from trl import SFTConfig

import scst
from scst.models.policy import policy_for
from tests.support.commands import call
from tests.support.paths import ROOT
from tests.support.stages import adapter_weights

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}


def brevity(completions, **columns):
    """Minus the number of words."""
    return [-float(len(text.split())) for text in completions]


@pytest.fixture
def data(world):
    return scst.load_dataset(str(world / "data"))


@pytest.fixture
def policy(world):
    return scst.load_policy(
        str(world / "model"),
        adapter=scst.LoRA(rank=4),
        quantization="none",
        precision="fp32",
        max_new_tokens=12,
    )


def test_a_notebook(world, data, policy, tmp_path):
    """As README has it: data, policy, two stages, evaluation, a caption; then the adapter is loaded again."""
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 12, "val": 4}
    scst.finetune(policy, data, output_dir=str(tmp_path / "sft"), **SHORT)
    before = adapter_weights(tmp_path / "sft")
    trainer = scst.refine(
        policy,
        data,
        output_dir=str(tmp_path / "scst"),
        rewards=["cider_d", brevity],
        num_samples=3,
        baseline="leave_one_out",
        table_steps=0,
        **SHORT,
    )
    after = adapter_weights(tmp_path / "scst")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert trainer.policy_loss.objective.baseline == "leave_one_out"
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"reward_cider_d", "reward_brevity"} <= set(log)
    record = json.loads((tmp_path / "scst" / "run.json").read_text())
    assert record["recipe"]["rewards"] == ["cider_d", "brevity"]
    scores = scst.evaluate(policy, data["val"], metrics=["cider_d", "bleu_4"])
    assert set(scores["cider_d"]) >= {"value", "ci95", "signature"}
    picture = next((world / "data" / "resized").glob("*.png"))
    caption = policy.caption(picture)
    again = scst.load_policy(adapter=tmp_path / "scst", precision="fp32")
    assert (again.max_new_tokens, again.quantization) == (12, "none"), "from run.json"
    assert again.caption([picture, picture]) == [caption, caption]


def test_a_run_from_python_is_evaluated_by_the_command(world, data, policy, tmp_path):
    scst.finetune(policy, data, str(tmp_path / "sft"), **SHORT)
    flags = ("--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "out"), "--precision", "fp32")
    rows = ("--dataset", str(world / "data"), "--metrics", "cider_d", "--report_samples", "0")
    assert call("evaluate", *flags, *rows) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    here = scst.evaluate(policy, data["val"], metrics=["cider_d"])
    assert found["cider_d"]["value"] == pytest.approx(here["cider_d"]["value"])


def test_trainers_by_hand(data, policy, tmp_path):
    """Plain values only: no recipe, no builder."""
    choice = scst.CaptionChoice("random", seed=1)
    sft = scst.CaptionSFTTrainer(
        policy.model,
        scst.training_arguments(SFTConfig, str(tmp_path / "sft"), SHORT, seed=1, precision="fp32"),
        train_dataset=data["train"],
        data_collator=scst.SFTCollator(policy.encoder, "caption en", choice, max_new_tokens=12),
        processor=policy.encoder,
    )
    sft.train()
    rl = scst.SCSTTrainer(
        policy.model,
        scst.training_arguments(
            transformers.TrainingArguments, str(tmp_path / "rl"), SHORT, seed=1, precision="fp32"
        ),
        train_dataset=data["train"],
        data_collator=scst.SCSTCollator(policy.encoder, "caption en"),
        processor=policy.encoder,
        sampling=scst.Sampling(num_samples=3, max_new_tokens=12),
        rewards=["cider_d", brevity],
        objective=scst.Objective(kl_weight=0.1),
    )
    rl.train()
    assert [entry["loss"] for entry in rl.state.log_history if "loss" in entry]


def test_parts_by_hand(data, policy):
    """Sampler, rewarder and policy loss without a trainer: captions, advantages, and a gradient."""
    rows = data["train"].select(range(2))
    captions = policy_for(policy.model.eval(), policy.encoder)
    prompts = policy.encoder.prompt_batch(rows["image"][:], [policy.prompt] * 2)
    sampling = scst.Sampling(num_samples=3, max_new_tokens=12)
    rollout = scst.Sampler(policy.encoder, sampling, seed=0).sample(
        captions, prompts, rows["image_id"][:], step=0
    )
    mixture = scst.RewardMixture([brevity])
    columns = {name: rows[name][:] for name in ("image_id", "references")} | {"prompts": [policy.prompt] * 2}
    rewarded = scst.Rewarder(mixture, "leave_one_out")(
        rollout, columns, transformers.TrainerState(), num_images=2
    )
    assert rewarded.rewards.sampled.tolist() == [
        [-float(len(t.split())) for t in g] for g in rollout.captions
    ]
    torch.testing.assert_close(rewarded.advantages.sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    loss = scst.PolicyLoss(
        policy.model,
        policy.encoder,
        sampling,
        scst.Objective("leave_one_out"),
        scst.ScoringSettings(),
        choice=scst.CaptionChoice(),
        autocast=nullcontext,
    )
    loss(captions, rollout, rewarded.advantages, columns).losses.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.model.parameters() if p.requires_grad)


def test_importing_is_cheap():
    code = "import sys, scst; scst.LoRA(rank=4); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_public_name_is_there():
    assert set(scst.__all__) == set(scst._HOMES)
    assert all(getattr(scst, name) is not None for name in scst.__all__)
    assert set(scst.__all__) <= set(dir(scst))
    with pytest.raises(AttributeError, match="'scst' has no attribute 'trainer_'"):
        getattr(scst, "trainer_")  # noqa: B009


def test_wrong_settings_say_what_was_expected(data, policy, tmp_path):
    with pytest.raises(scst.RecipeError, match="learning_rte"):
        scst.finetune(policy, data, str(tmp_path / "out"), learning_rte=1)
    with pytest.raises(scst.RecipeError, match=r"label_smoothing_factor: .* no effect"):
        scst.refine(policy, data, str(tmp_path / "out"), label_smoothing_factor=0.1)
    with pytest.raises(scst.DataError, match="no split 'test'; loaded are train, val"):
        data["test"]
    with pytest.raises(scst.RecipeError, match="model_name_or_path: missing"):
        scst.load_policy()
