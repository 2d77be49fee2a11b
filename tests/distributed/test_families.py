"""Other families on two processes: the log and the adapter of one process, images of several shapes."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.support.families import write_world
from tests.support.jobs import train
from tests.support.processes import device_config, environment_of, run_together

pytestmark = pytest.mark.slow

CASES = (("qwen3_vl", "cpu-2"), ("internvl", "zero2"), ("qwen2_5_vl", "zero3"), ("gemma3", "fsdp2"))


def keys_of(world, stage, **keys):
    shared = {
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "max_new_tokens": 8,
        "precision": "fp32",
        "quantization": "none",
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,  # far above the rounding of gradients, which would else decide a direction
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "eval_strategy": "no",
        "save_strategy": "no",
        "seed": 3,
    }
    own = {
        "sft": {"lora_rank": 4},
        "scst": {"num_samples": 3, "table_steps": 0, "adapter": str(world / "sft")},
    }
    return shared | own[stage] | keys


@pytest.mark.parametrize(("name", "config"), CASES)
def test_two_processes_learn_what_one_learns(name, config, tmp_path):
    world = write_world(tmp_path, name, train=5, val=3)
    environment = environment_of(device_config(config))
    for stage in ("sft", "scst"):
        one = world / stage
        expected = train(stage, keys_of(world, stage, output_dir=str(one)))
        two = keys_of(world, stage, output_dir=str(world / "two" / stage), per_device_train_batch_size=2)
        logs = run_together(train, stage, two, folder=world / f"processes-{stage}", environment=environment)
        for log in logs:
            losses = [[entry["loss"] for entry in each if "loss" in entry] for each in (log, expected)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
        weights, wanted = (
            load_file(folder / "adapter_model.safetensors") for folder in (world / "two" / stage, one)
        )
        assert set(weights) == set(wanted)
        assert all((weights[n] - wanted[n]).abs().max() < 1e-5 for n in wanted)
