"""Both stages end to end on a tiny model: what changes, what must not, resuming, and how batches are cut."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import PeftModel
from transformers import PaliGemmaForConditionalGeneration

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.errors import RecipeError, ScstError
from scst.models.pretrained import load_model
from tests.support.stages import adapter_weights, bits, losses

STAGES = ("sft", "scst")


def stage_keys(stage, sft_adapter):
    return {"adapter": str(sft_adapter)} if stage == "scst" else {}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("stage", STAGES)
def test_only_the_adapter_changes(run_stage, sft_adapter, tmp_path, world, stage, quantization):
    """Every frozen tensor is the same bit for bit; the adapter is not, and loads with plain PEFT."""
    trainer = run_stage(
        stage, output_dir=str(tmp_path / "out"), quantization=quantization, **stage_keys(stage, sft_adapter)
    )
    fresh = load_model(str(world / "model"), quantization=quantization, precision="fp32").state_dict()
    trained = trainer.model.get_base_model().state_dict()
    frozen = {
        name.replace(".base_layer", ""): tensor for name, tensor in trained.items() if "lora" not in name
    }
    assert set(frozen) == set(fresh)
    for name, tensor in fresh.items():
        assert torch.equal(bits(frozen[name]), bits(tensor)), name

    base = PaliGemmaForConditionalGeneration.from_pretrained(world / "model")
    loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    weights = {name: p for name, p in loaded.named_parameters() if "lora_B" in name}
    assert weights
    assert all(p.abs().sum() > 0 for p in weights.values())
    if stage == "scst":
        before, after = adapter_weights(sft_adapter), adapter_weights(tmp_path / "out")
        assert set(before) == set(after)
        assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", STAGES)
def test_output_folder_is_complete(run_stage, sft_adapter, tmp_path, stage):
    run_stage(stage, output_dir=str(tmp_path / "out"), **stage_keys(stage, sft_adapter))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "trainer_state.json",
        "run.json",
        "tokenizer.json",
    }
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["stage"] == stage
    assert record["steps"] == 4
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert len(record["data_fingerprint"]) == 64
    if stage == "scst":
        table = DocumentFrequencies.load(tmp_path / "out" / "document_frequencies.json")
        assert (table.num_images, table.eos) == (12, "emitted")


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_equals_uninterrupted_run(run_stage, sft_adapter, tmp_path, stage):
    """Across an epoch boundary (3 steps an epoch), with shuffling, random captions and dropout in SFT."""
    keys = stage_keys(stage, sft_adapter) | {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    keys |= {"lora_dropout": 0.1} if stage == "sft" else {"kl_weight": 0.05}
    whole = run_stage(stage, output_dir=str(tmp_path / "whole"), **keys)
    run_stage(stage, output_dir=str(tmp_path / "parts"), **keys)
    for step in (4, 6):  # as if the run had been killed after step 2
        folder = tmp_path / "parts" / f"checkpoint-{step}"
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()
    resumed = run_stage(stage, output_dir=str(tmp_path / "parts"), resume=True, **keys)
    assert losses(resumed) == losses(whole)
    expected, actual = adapter_weights(tmp_path / "whole"), adapter_weights(tmp_path / "parts")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "killed before its output was"])
def test_resuming_at_the_end_trains_nothing(run_stage, sft_adapter, tmp_path, stage, complete):
    """`transformers` alone would make one more step."""
    keys = stage_keys(stage, sft_adapter) | {"save_strategy": "steps", "save_steps": 2}
    keys |= {"output_dir": str(tmp_path / "out"), "max_steps": -1, "num_train_epochs": 2}
    before = losses(run_stage(stage, **keys))
    expected = adapter_weights(tmp_path / "out")
    if not complete:
        (tmp_path / "out" / "run.json").unlink()
        (tmp_path / "out" / "adapter_model.safetensors").unlink()
    resumed = run_stage(stage, resume=True, **keys)
    actual = adapter_weights(tmp_path / "out")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == len(before) == 6
    assert complete or losses(resumed) == before


def test_incomplete_checkpoint_is_passed_over(run_stage, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "out")}
    run_stage("sft", **keys)
    (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = run_stage("sft", resume=True, **keys)
    assert resumed.state.global_step == 4
    assert (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_loss_does_not_depend_on_how_a_batch_is_cut(run_stage, sft_adapter, tmp_path, stage):
    """One micro-batch of 4 images, or 4 of 1: the same losses and adapters up to rounding."""
    keys = stage_keys(stage, sft_adapter) | {"max_grad_norm": 0.0}
    whole = run_stage(stage, output_dir=str(tmp_path / "whole"), per_device_train_batch_size=4, **keys)
    cut = run_stage(
        stage,
        output_dir=str(tmp_path / "cut"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        **keys,
    )
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4, abs=1e-5)
    expected, actual = adapter_weights(tmp_path / "whole"), adapter_weights(tmp_path / "cut")
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-2, atol=1e-4)


def test_gradient_checkpointing_changes_nothing(run_stage, sft_adapter, tmp_path):
    keys = {"adapter": str(sft_adapter), "max_steps": 2}
    plain = run_stage("scst", output_dir=str(tmp_path / "a"), **keys)
    checkpointed = run_stage("scst", output_dir=str(tmp_path / "b"), gradient_checkpointing=True, **keys)
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-5)
    a, b = adapter_weights(tmp_path / "a"), adapter_weights(tmp_path / "b")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        {"baseline": "leave_one_out"},
        {"baseline": "group"},
        {"num_samples": 1},
        {"kl_weight": 0.1, "entropy_weight": 0.01, "cross_entropy_weight": 0.5},
        {"scoring": "plain", "temperature": 0.9, "top_k": 20, "top_p": 0.95},
        {"precision": "bf16"},
        {"quantization": "8bit"},
        {"model_name_or_path": "model2"},
    ],
    ids=lambda keys: ",".join(keys),
)
def test_scst_settings_run(run_stage, tmp_path, world, keys):
    """Every estimator, term and precision trains and logs what the documentation promises."""
    model = str(world / keys.pop("model_name_or_path", "model"))
    shared = {"model_name_or_path": model, "quantization": keys.get("quantization", "none")}
    run_stage("sft", output_dir=str(tmp_path / "sft"), max_steps=2, **shared)
    trainer = run_stage(
        "scst", output_dir=str(tmp_path / "out"), adapter=str(tmp_path / "sft"), max_steps=2, **shared | keys
    )
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert set(entry) >= {
        "reward_sampled",
        "reward_greedy",
        "reward_cider_d",
        "advantage_mean",
        "advantage_std",
        "zero_advantage_share",
        "ended_by_eos",
        "caption_length",
        "distinct_samples",
        "bad_ending_rate",
        "repetition_rate",
        "kl",
        "entropy",
        "grad_norm",
        "images_per_s",
        "seconds_rollout",
        "seconds_reward",
        "seconds_loss",
    }
    assert all(value == value for value in entry.values()), "NaN in the log"
    assert entry["kl"] == pytest.approx(0, abs=0.05), "the SFT policy is where SCST starts"


@pytest.mark.parametrize(
    "keys",
    [
        {"optim": "adamw_8bit", "quantization": "nf4"},
        {"caption_policy": "all", "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"caption_policy": "consensus", "lora_targets": "full", "precision": "bf16"},
        {"model_name_or_path": "model2", "caption_policy": "first", "lora_dropout": 0.1},
    ],
    ids=lambda keys: ",".join(keys),
)
def test_sft_settings_run(run_stage, tmp_path, world, keys):
    model = str(world / keys.pop("model_name_or_path", "model"))
    trainer = run_stage("sft", output_dir=str(tmp_path / "out"), model_name_or_path=model, **keys)
    assert all(value == value for value in losses(trainer))
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_vision_adapters_are_refined_too(run_stage, tmp_path):
    """A trainable vision tower's features cannot be reused from the rollout: gradients must reach it."""
    run_stage("sft", output_dir=str(tmp_path / "sft"), lora_targets="full")
    run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(tmp_path / "sft"))
    before, after = adapter_weights(tmp_path / "sft"), adapter_weights(tmp_path / "out")
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(not torch.equal(before[name], after[name]) for name in before if part in name), part


def test_tensorboard(run_stage, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run_stage("sft", output_dir=str(tmp_path / "out"), report_to="tensorboard")
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_missing_tracker_is_refused_before_the_model_is_loaded(run_stage, tmp_path, monkeypatch):
    monkeypatch.setattr("scst.adapters.loaded.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match="report_to: 'comet_ml' is not installed"):
        run_stage("sft", output_dir=str(tmp_path / "out"), report_to="comet_ml")


EMBEDDED = {
    "model_name_or_path": "embedded:scenes-paligemma",
    "dataset": "embedded:scenes",
    "max_train_images": 32,
    "max_new_tokens": 24,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "max_steps": 8,
}


@pytest.fixture(scope="module")
def scenes_adapter(tmp_path_factory):
    """A new adapter on the embedded model, in the output format of the supervised stage."""
    from scst.adapters.lora import add_lora

    folder = tmp_path_factory.mktemp("scenes") / "adapter"
    model = load_model(EMBEDDED["model_name_or_path"], quantization="none", precision="fp32")
    add_lora(model, targets="decoder-attention-mlp", rank=8, alpha=16).save_pretrained(folder)
    return folder


def test_sft_learns_captions(run_stage, tmp_path):
    trainer = run_stage("sft", output_dir=str(tmp_path / "out"), **EMBEDDED)
    values = losses(trainer)
    assert sum(values[-2:]) < 0.8 * sum(values[:2])


def test_cross_entropy_term_teaches_human_captions(run_stage, scenes_adapter, tmp_path):
    """With the term alone in charge the policy learns the captions: the loss falls."""
    trainer = run_stage(
        "scst",
        output_dir=str(tmp_path / "out"),
        adapter=str(scenes_adapter),
        cross_entropy_weight=100.0,
        **EMBEDDED,
    )
    values = losses(trainer)
    assert sum(values[-2:]) < 0.8 * sum(values[:2])


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_a_learnable_reward_rises(run_stage, scenes_adapter, tmp_path, baseline):
    """Rewarded for brevity alone, the policy writes shorter captions: sign and scale are right."""
    trainer = run_stage(
        "scst",
        output_dir=str(tmp_path / "out"),
        adapter=str(scenes_adapter),
        rewards=[{"import_path": "tests.training.test_stages:brevity"}],
        baseline=baseline,
        **EMBEDDED | {"max_steps": 12, "num_samples": 5},
    )
    rewards = [e["reward_sampled"] for e in trainer.state.log_history if "reward_sampled" in e]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3.0


def brevity(completions, **columns):
    """A reward by the contract: minus the number of words."""
    return [-float(len(text.split())) for text in completions]


def test_mismatch_of_sampling_and_scoring_stops_the_run(run_stage, sft_adapter, tmp_path, monkeypatch):
    from scst.rl import sampler

    honest = sampler.rollout

    def shifted(*args, **kwargs):
        rollout = honest(*args, **kwargs)
        return dataclasses.replace(rollout, sampled_logprobs=rollout.sampled_logprobs - 0.5)

    monkeypatch.setattr(sampler, "rollout", shifted)
    with pytest.raises(ScstError, match="do not see the same policy"):
        run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(sft_adapter))


def test_changed_document_frequencies_refuse_to_resume(run_stage, sft_adapter, tmp_path):
    keys = {
        "adapter": str(sft_adapter),
        "output_dir": str(tmp_path / "out"),
        "save_strategy": "steps",
        "save_steps": 2,
    }
    run_stage("scst", **keys)
    omitted = [{"name": "cider_d", "kwargs": {"eos": "omitted"}}]
    with pytest.raises(RecipeError, match="was made with rewards: "):
        run_stage("scst", resume=True, rewards=omitted, max_steps=6, **keys)
    keys["resume_changed"] = True
    with pytest.raises(RecipeError, match="'cider_d': the document frequencies"):
        run_stage("scst", resume=True, rewards=omitted, max_steps=6, **keys)


def test_earlier_run_is_not_overwritten_by_accident(run_stage, tmp_path):
    run_stage("sft", output_dir=str(tmp_path / "out"))
    with pytest.raises(RecipeError, match="holds an earlier run"):
        run_stage("sft", output_dir=str(tmp_path / "out"))
    run_stage("sft", output_dir=str(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize("stage", STAGES)
def test_validation_selects_the_best_checkpoint(run_stage, sft_adapter, tmp_path, stage):
    trainer = run_stage(
        stage,
        output_dir=str(tmp_path / "out"),
        **stage_keys(stage, sft_adapter),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        metric_for_best_model="cider_d",
        load_best_model_at_end=True,
        early_stopping_patience=5,
        validation_images=3,
        validation_batch_size=2,
    )
    values = {e["step"]: e["eval_cider_d"] for e in trainer.state.log_history if "eval_cider_d" in e}
    values.pop(0, None)  # SCST evaluates before its first step; no checkpoint is made there
    assert set(values) == {2, 4}
    assert trainer.state.best_metric == max(values.values())
    best = tmp_path / "out" / f"checkpoint-{trainer.state.best_global_step}"
    expected, actual = adapter_weights(best), adapter_weights(tmp_path / "out")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_run_that_stopped_early_goes_on_with_more_patience(run_stage, tmp_path, capsys):
    """Nothing is learnt, so no evaluation is better than the first."""
    keys = {
        **{"output_dir": str(tmp_path / "out"), "learning_rate": 0.0, "max_steps": 5},
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        **{"metric_for_best_model": "cider_d", "validation_images": 2, "validation_batch_size": 2},
    }
    assert run_stage("sft", early_stopping_patience=1, **keys).state.global_step == 2
    again = run_stage("sft", early_stopping_patience=1, resume=True, **keys)
    assert again.state.global_step == 2
    assert "ended early, at step 2 of 5; nothing is trained again" in capsys.readouterr().out
    assert run_stage("sft", early_stopping_patience=2, resume=True, **keys).state.global_step == 3
    assert run_stage("sft", early_stopping_patience=None, resume=True, **keys).state.global_step == 5


def test_patience_without_evaluations_is_refused(run_stage, tmp_path):
    with pytest.raises(RecipeError, match="early_stopping_patience: there is no evaluation"):
        run_stage("sft", output_dir=str(tmp_path / "out"), early_stopping_patience=2)


def test_a_finished_run_goes_on_with_more_steps(run_stage, tmp_path):
    keys = {"output_dir": str(tmp_path / "out"), "save_strategy": "steps", "save_steps": 1}
    assert run_stage("sft", **keys, max_steps=1).state.global_step == 1
    more = run_stage("sft", **keys, max_steps=3, resume=True)
    assert more.state.global_step == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 3
