"""The checkpointer by itself: parts by name, a failure to write, and the last completed step."""

from __future__ import annotations

import random

import pytest
import torch

from rewards.errors import RewardError
from scst.errors import RecipeError
from scst.training.checkpointer import Checkpointer
from scst.training.run_folder.manifest import verify


class Part:
    """Counts steps; a tensor beside a plain value."""

    def __init__(self):
        self.steps, self.weights = 0, torch.zeros(2)

    def step(self):
        self.steps += 1
        self.weights = self.weights + 1

    def state_dict(self):
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state):
        self.steps, self.weights = state["steps"], state["weights"]


def write(folder):
    """What the library writes."""
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_bytes(b"a" * 10)


def test_parts_are_saved_and_restored_by_name(tmp_path):
    checkpointer, part = Checkpointer(tmp_path), Part()
    checkpointer.register("part", part)
    part.step()
    checkpointer.save(1, write)
    assert verify(tmp_path / "checkpoint-1") is None
    part.step()
    resumed, other = Checkpointer(tmp_path), Part()
    resumed.register("part", other)
    resumed.restore(tmp_path / "checkpoint-1")
    assert other.steps == 1
    assert other.weights.tolist() == [1.0, 1.0]


def test_a_step_that_fails_half_way_leaves_the_one_before(tmp_path):
    """State that changes within a step, and generators, are those of the end of the last one."""
    checkpointer, rewound, live = Checkpointer(tmp_path), Part(), Part()
    checkpointer.register("rewound", rewound, rewinds=True)
    checkpointer.register("live", live)
    assert not checkpointer.save_last_step(0, write), "no step was made"
    rewound.step()
    live.step()
    random.seed(3)
    checkpointer.end_step()
    expected = random.random()
    rewound.step()
    live.step()
    assert checkpointer.save_last_step(1, write)
    assert random.random() == expected
    saved = torch.load(tmp_path / "checkpoint-1" / "parts-0.pt", weights_only=True)
    assert (saved["rewound"]["steps"], saved["live"]["steps"]) == (1, 2)
    assert not checkpointer.save_last_step(1, write), "it is there already"


def test_a_full_disk_is_reported_and_the_run_goes_on(tmp_path, caplog):
    def full(folder):
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, write)
    checkpointer.save(2, full)
    assert checkpointer.failed_saves == 1
    assert "newest complete one: checkpoint-1" in caplog.text
    assert not (tmp_path / "checkpoint-2").exists()
    with pytest.raises(OSError, match="No space left"):
        Checkpointer(tmp_path, can_fail=False).save(3, full)


def test_other_errors_end_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Checkpointer(tmp_path).save(1, lambda folder: 1 / 0)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    Checkpointer(tmp_path).save(1, write)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.register("monitor", Part())
    with pytest.raises(RecipeError, match=r"resume: .*checkpoint-1 holds no state of 'monitor'"):
        checkpointer.restore(tmp_path / "checkpoint-1")


def test_a_reward_that_refuses_its_state_is_a_sentence(tmp_path):
    class Reward(Part):
        def load_state_dict(self, state):
            raise RewardError("document frequencies differ")

    checkpointer = Checkpointer(tmp_path)
    checkpointer.register("rewards", Reward())
    checkpointer.save(1, write)
    with pytest.raises(RecipeError, match="resume: document frequencies differ"):
        checkpointer.restore(tmp_path / "checkpoint-1")
