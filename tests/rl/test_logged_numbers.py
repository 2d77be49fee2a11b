"""A logged number says the same however the optimizer step is cut into micro-batches."""

from __future__ import annotations

import pytest

VARYING = ("seconds_", "memory_gb_", "micro_batch_", "images_per_s", "learning_rate", "epoch", "step")
"""Names that tell how the work was done."""


def first_log(run_stage, sft_adapter, folder, **keys):
    settings = {"adapter": str(sft_adapter), "output_dir": str(folder), "max_steps": 1, "seed": 5} | keys
    trainer = run_stage("scst", **settings)
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return {name: value for name, value in entry.items() if not name.startswith(VARYING)}


@pytest.mark.parametrize("keys", [{}, {"kl_weight": 0.1}, {"baseline": "leave_one_out"}], ids=str)
def test_numbers_do_not_depend_on_the_cut(run_stage, sft_adapter, tmp_path, keys):
    """One micro-batch of 8 images, 2 of 4, 4 of 2, and 8 images of which 3 are scored at a time."""
    whole = first_log(run_stage, sft_adapter, tmp_path / "8", per_device_train_batch_size=8, **keys)
    assert {"kl", "entropy", "reward_cider_d_std", "advantage_std", "logprob_gap"} <= set(whole)
    cuts = {"4": {"gradient_accumulation_steps": 2}, "2": {"gradient_accumulation_steps": 4}}
    for size, accumulation in cuts.items():
        settings = {"per_device_train_batch_size": int(size)} | accumulation | keys
        cut = first_log(run_stage, sft_adapter, tmp_path / size, **settings)
        assert cut == pytest.approx(whole, rel=1e-3, abs=1e-5), size
    parts = {"per_device_train_batch_size": 8, "scoring_batch_size": 3} | keys
    assert first_log(run_stage, sft_adapter, tmp_path / "3", **parts) == pytest.approx(
        whole, rel=1e-3, abs=1e-5
    )


def test_entropy_is_that_of_the_policy_and_not_of_the_captions_with_an_advantage(
    run_stage, sft_adapter, tmp_path
):
    """Leaving out captions without an advantage changes what is scored, not what is reported."""
    keys = {"per_device_train_batch_size": 8, "rewards": [{"name": "length", "kwargs": {"target": 3}}]}
    skips = first_log(run_stage, sft_adapter, tmp_path / "skips", **keys)
    scores_all = first_log(run_stage, sft_adapter, tmp_path / "all", skip_zero_advantages=False, **keys)
    assert skips["entropy"] == scores_all["entropy"] > 0
    assert skips["zero_advantage_share"] > 0
    assert skips["scored_share"] < scores_all["scored_share"]


def logs_twice(completions, log_metric=None, **columns):
    for value in (1.0, 3.0):
        log_metric("spoken", value)
    return [float(len(text)) for text in completions]


def test_every_value_that_a_reward_logs_counts(run_stage, sft_adapter, tmp_path):
    rewards = [{"import_path": "tests.rl.test_logged_numbers:logs_twice"}]
    assert first_log(run_stage, sft_adapter, tmp_path / "out", rewards=rewards)["spoken"] == 2.0
