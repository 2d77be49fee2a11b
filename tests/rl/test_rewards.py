"""Rewards inside the trainer: TRL's contract, mixtures in the log, and a failing reward."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import RewardError
from scst.objective.advantages import advantage_magnitudes
from tests.support.jobs import exit_code
from tests.support.processes import device_config, environment_of, run_together
from tests.support.stages import losses
from tests.support.worlds import write_recipe

HERE = "tests.rl.test_rewards"
FAILS = {"at_step": None, "how": "raises"}


def noisy_length(completions, trainer_state=None, **columns):
    """Draws from the global generator, and fails in the second micro-batch of a step when told to."""
    values = [len(text.split()) + random.random() for text in completions]
    step = trainer_state.global_step + 1
    FAILS["calls"] = FAILS.get("calls", 0) + 1 if FAILS.get("step") == step else 1
    FAILS["step"] = step
    if FAILS["at_step"] == step and FAILS["calls"] == 2:
        if FAILS["how"] == "hangs":
            threading.Event().wait()
        if FAILS["how"] == "exits":
            sys.exit(0)
        if FAILS["how"] == "raises":
            raise OSError("no answer")
        values[1] = {"nan": float("nan"), "infinite": float("inf")}.get(FAILS["how"], values[1])
        values = values[1:] if FAILS["how"] == "wrong length" else values
    return values


FAILING = {
    "rewards": [
        {"import_path": f"{HERE}:noisy_length", "normalize": True, "timeout_s": 5},
        {"name": "cider_d", "weight": 0.5},
    ],
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "kl_weight": 0.05,
}


@pytest.fixture
def failing(monkeypatch):
    """Tells the reward when to fail."""

    def tell(at_step, how="raises"):
        FAILS.update(at_step=at_step, how=how, step=None, calls=0)

    yield tell
    tell(None)


def moments(checkpoint: Path) -> dict:
    return torch.load(checkpoint / "parts-0.pt", weights_only=True)["rewarder"]["moments"]


@pytest.mark.parametrize("step", [3, 4], ids=["within an epoch", "at the start of an epoch"])
def test_a_failing_reward_leaves_a_run_to_resume(run_stage, sft_adapter, tmp_path, failing, step):
    """Bit for bit: statistics, generators and gradients of the half step are those of its beginning."""
    keys = FAILING | {"adapter": str(sft_adapter)}
    whole = run_stage("scst", output_dir=str(tmp_path / "whole"), **keys)
    failing(at_step=step)
    with pytest.raises(RewardError, match=r"'noisy_length' raised OSError: no answer .*image 'tile_"):
        run_stage("scst", output_dir=str(tmp_path / "parts"), **keys)
    (checkpoint,) = (tmp_path / "parts").glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{step - 1}", "the last step that was completed"
    assert moments(checkpoint)["noisy_length"]["count"] == (step - 1) * 16
    failing(at_step=None)
    resumed = run_stage("scst", output_dir=str(tmp_path / "parts"), resume=True, **keys)
    assert losses(resumed) == losses(whole)
    expected, actual = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert resumed.mixture.state_dict() == whole.mixture.state_dict()


@pytest.mark.parametrize(
    ("how", "message"),
    {
        "hangs": r"'noisy_length' did not answer within its `timeout_s` of 5 s .*image 'tile_\d+', ",
        "exits": r"'noisy_length' raised SystemExit: 0, which would have ended the run .*image 'tile_",
        "nan": r"'noisy_length' returned nan for image 'tile_\d+', caption '",
        "infinite": r"'noisy_length' returned inf for image 'tile_\d+', caption '",
        "wrong length": r"one value per completion \(8\), got 7 \(.*image 'tile_\d+', caption '",
    }.items(),
)
def test_every_failure_is_named_and_saved(run_stage, sft_adapter, tmp_path, failing, how, message):
    keys = FAILING | {"adapter": str(sft_adapter), "output_dir": str(tmp_path / "out")}
    failing(at_step=2, how=how)
    with pytest.raises(RewardError, match=message):
        run_stage("scst", **keys)
    assert (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").is_file()


def test_a_checkpoint_that_is_there_is_not_written_again(run_stage, sft_adapter, tmp_path, failing):
    keys = FAILING | {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "out")}
    failing(at_step=3)
    with pytest.raises(RewardError):
        run_stage("scst", adapter=str(sft_adapter), **keys)
    saved = (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").stat().st_mtime_ns
    failing(at_step=3)
    with pytest.raises(RewardError):
        run_stage("scst", adapter=str(sft_adapter), resume=True, **keys)
    assert (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").stat().st_mtime_ns == saved


def test_a_failure_in_the_first_step_saves_nothing(run_stage, sft_adapter, tmp_path, failing):
    failing(at_step=1)
    with pytest.raises(RewardError):
        run_stage("scst", adapter=str(sft_adapter), output_dir=str(tmp_path / "out"), **FAILING)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_checkpoint_without_statistics_is_refused(run_stage, sft_adapter, tmp_path):
    from scst.errors import RecipeError

    keys = {"adapter": str(sft_adapter), "output_dir": str(tmp_path / "out"), "save_strategy": "steps"}
    run_stage("scst", save_steps=2, max_steps=2, **keys)
    with pytest.raises(
        RecipeError, match=r"resume: .* no statistics of the normalised rewards \['cider_d'\]"
    ):
        run_stage(
            "scst",
            resume=True,
            resume_changed=True,
            rewards=[{"name": "cider_d", "normalize": True}],
            max_steps=4,
            **keys,
        )


def some_opinions(completions, prompts, **kwargs):
    """As TRL's documentation writes them: no opinion on every second completion."""
    assert len(prompts) == len(completions) == len(kwargs["completion_ids"]) == len(kwargs["references"])
    kwargs["log_metric"]("words", sum(len(text.split()) for text in completions) / len(completions))
    assert kwargs["trainer_state"].max_steps == 2
    return [None if i % 2 else float(len(ids)) for i, ids in enumerate(kwargs["completion_ids"])]


class AsyncJudge:
    """An asynchronous callable object."""

    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [float(len(set(text))) for text in completions]


def test_trl_reward_functions_run_here(run_stage, sft_adapter, tmp_path):
    """A function, an asynchronous object and CIDEr-D in a worker; every component is in the log."""
    trainer = run_stage(
        "scst",
        adapter=str(sft_adapter),
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        rewards=[
            {"import_path": f"{HERE}:some_opinions", "weight": 0.1},
            {"import_path": f"{HERE}:AsyncJudge", "normalize": True},
            {"name": "cider_d", "workers": 1},
        ],
    )
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("some_opinions", "AsyncJudge", "cider_d")
    for entry in entries:
        assert sum(entry[f"advantage_share_{name}"] for name in names) == pytest.approx(1)
        assert all(0 < entry[f"advantage_share_{name}"] < 1 for name in names[:2])
        assert entry["words"] > 0
        record = trainer.last_step.rewards.components
    assert entries[-1]["reward_AsyncJudge"] == pytest.approx(record["AsyncJudge"].mean().item())
    assert entries[-1]["reward_AsyncJudge_std"] == pytest.approx(
        record["AsyncJudge"].std(correction=0).item()
    )
    opinions = record["some_opinions"]
    assert opinions.isnan().any()
    mean, std = (entries[-1][f"reward_some_opinions{suffix}"] for suffix in ("", "_std"))
    assert mean == pytest.approx(opinions[~opinions.isnan()].mean().item())
    assert std == pytest.approx(opinions[~opinions.isnan()].std(correction=0).item())
    assert not trainer.mixture.calls.pools["cider_d"]._workers, "the script ended them"


def test_magnitudes_literally():
    # one image, two samples; reward a: 3, 1 against greedy 1 -> |2| + |0| = 2
    #                        reward b: 0, 4 against greedy 1 -> |-1| + |3| = 4
    sampled = torch.tensor([[[3.0, 1.0]], [[0.0, 4.0]]])
    greedy = torch.tensor([[1.0], [1.0]])
    assert advantage_magnitudes("greedy", sampled, greedy).tolist() == [2.0, 4.0]
    # against the other sample: a +2, -2; b -4, +4; against the mean half of that
    assert advantage_magnitudes("leave_one_out", sampled, greedy).tolist() == [4.0, 8.0]
    assert advantage_magnitudes("group", sampled, greedy).tolist() == [2.0, 4.0]


def test_magnitudes_of_constant_rewards_and_of_no_opinion():
    sampled, greedy = torch.ones(2, 1, 2), torch.ones(2, 1)
    for baseline in ("greedy", "leave_one_out", "group"):
        assert advantage_magnitudes(baseline, sampled, greedy).tolist() == [0.0, 0.0]
    # the second sample is NaN in all: a: |3 - 1| + 0, b: 0
    sampled = torch.tensor([[[3.0, torch.nan]], [[1.0, torch.nan]]])
    assert advantage_magnitudes("greedy", sampled, greedy).tolist() == [2.0, 0.0]


def second_process_fails(completions, trainer_state=None, **columns):
    if os.environ["RANK"] == "1" and trainer_state.global_step == 2:
        raise OSError("no answer here")
    return [float(len(text)) for text in completions]


def test_processes_stop_together(world, sft_adapter, tmp_path):
    """One of two fails: both stop with its message, after a checkpoint with statistics over both."""
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model_name_or_path=str(world / "model"),
        dataset=str(world / "data"),
        adapter=str(sft_adapter),
        output_dir=str(tmp_path / "out"),
        rewards=[{"import_path": f"{HERE}:second_process_fails", "normalize": True}],
        quantization="none",
        max_new_tokens=8,
        num_samples=2,
        max_steps=4,
        per_device_train_batch_size=2,
        save_strategy="no",
    )
    folder, environment = tmp_path / "processes", environment_of(device_config("cpu-2"))
    codes = run_together(exit_code, "scst", "--config", str(recipe), folder=folder, environment=environment)
    assert codes == [1, 1]
    said = "".join((folder / f"process-{rank}.log").read_text() for rank in (0, 1))
    assert said.count("error: reward 'second_process_fails' raised OSError: no answer here") == 2
    assert "(in process 1)" in said
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "rng_state_1.pth").is_file()
    # 2 steps of 2 processes of 2 images, 2 samples and the greedy caption each: 2 * 2 * 2 * 3 = 24
    assert moments(checkpoint)["second_process_fails"]["count"] == 24
    shutil.rmtree(tmp_path / "out")
