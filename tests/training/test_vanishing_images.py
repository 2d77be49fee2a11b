"""Held-out images that vanish: the step is saved, the file named, and no process is left waiting."""

from __future__ import annotations

import shutil

import pytest
from torch import nn

from rewards.errors import RewardError
from scst.distributed import sharded_weights
from scst.distributed.sharded_weights import is_sharded
from scst.errors import DataError
from scst.training.hooks import TrainerHooks
from scst.training.unreadable_data import GuardedBatches, UnreadableData

CALLS = {"fail": False}


@pytest.fixture
def at_evaluation(monkeypatch):
    """Does something just before the evaluation at step 2."""

    def act(what):
        honest = TrainerHooks.evaluate

        def evaluate(self, *args, **kwargs):
            if self.state.global_step == 2:
                what()
            return honest(self, *args, **kwargs)

        monkeypatch.setattr(TrainerHooks, "evaluate", evaluate)

    return act


def keys_of(stage, world, sft_adapter, tmp_path):
    keys = {
        "dataset": str(shutil.copytree(world / "data", tmp_path / "data")),
        "output_dir": str(tmp_path / "out"),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 3,
    }
    return keys | ({"adapter": str(sft_adapter)} if stage == "scst" else {})


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_an_evaluation_that_cannot_read_saves_its_step(
    run_stage, world, sft_adapter, tmp_path, at_evaluation, monkeypatch, stage
):
    keys, images = keys_of(stage, world, sft_adapter, tmp_path), tmp_path / "data" / "resized"
    at_evaluation(lambda: (images / "tile_13.png").rename(tmp_path / "elsewhere.png"))
    with pytest.raises(DataError, match=r"evaluation at step 2 cannot be read any more: .*tile_13\.png"):
        run_stage(stage, **keys)
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    (tmp_path / "elsewhere.png").rename(images / "tile_13.png")
    assert run_stage(stage, **keys, resume=True).state.global_step == 3


def sulking(completions, **columns):
    """A reward that fails when it is told to."""
    if CALLS["fail"]:
        raise ValueError("no more")
    return [1.0] * len(completions)


def test_a_reward_that_fails_in_an_evaluation_saves_its_step(
    run_stage, world, sft_adapter, tmp_path, at_evaluation
):
    keys = keys_of("scst", world, sft_adapter, tmp_path)
    at_evaluation(lambda: CALLS.update(fail=True))
    try:
        with pytest.raises(RewardError, match="'sulking' raised ValueError: no more"):
            run_stage("scst", rewards=[{"import_path": f"{__name__}:sulking"}], **keys)
    finally:
        CALLS.update(fail=False)
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


class Loader:
    """Three batches, of which one cannot be read."""

    batch_size = 4

    def __init__(self, unreadable=None):
        self.unreadable = unreadable

    def __len__(self):
        return 3

    def __iter__(self):
        for i in range(3):
            if i == self.unreadable:
                raise FileNotFoundError(2, "No such file", f"tile_{i}.png")
            yield i


@pytest.mark.parametrize("lockstep", [True, False])
def test_batches_end_at_the_first_that_cannot_be_read(lockstep):
    batches = GuardedBatches(Loader(unreadable=1), lockstep=lockstep)
    assert (len(batches), batches.batch_size) == (3, 4)
    assert list(batches) == [0]
    with pytest.raises(UnreadableData, match=r"tile_1\.png"):
        batches.check()
    sound = GuardedBatches(Loader(), lockstep=lockstep)
    assert list(sound) == [0, 1, 2]
    sound.check()


def test_whether_weights_are_sharded_is_looked_at_once(monkeypatch):
    """And again when the model has been sharded meanwhile."""
    looks = []
    honest = sharded_weights._fsdp_modules
    monkeypatch.setattr(sharded_weights, "_fsdp_modules", lambda model: looks.append(1) or honest(model))
    model = nn.Linear(2, 2)
    assert not any(is_sharded(model) for _ in range(5))
    assert len(looks) == 1
    model.weight.ds_id = 0  # as ZeRO-3 marks parameters
    assert is_sharded(model)
    assert not is_sharded(nn.Linear(2, 2))
    assert not is_sharded(nn.Identity())
