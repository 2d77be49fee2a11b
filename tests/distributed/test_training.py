"""Both stages on two processes: the loss curve, the metrics and the adapter of one process."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import train, train_where_one_ends_early
from tests.support.processes import device_config, environment_of, run_together
from tests.support.worlds import write_model, write_risc

pytestmark = pytest.mark.slow

STAGES = ("sft", "scst")

DEPENDS_ON_PARTS = (
    *("_std", "kl", "num_tokens", "total_flos"),
    *("scored_share", "advantage_share", "most_common_caption"),
)
"""Computed within a process: deviations, KL of the first image, shares. A spare image has tokens."""

DEPENDS_ON_TIME = ("second", "runtime", "images_per_s", "memory", "micro_batch")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """5 images to train on: at 4 a step the last step of an epoch has one, fewer than there are processes."""
    folder = tmp_path_factory.mktemp("devices")
    write_model(folder / "model")
    write_risc(folder / "data", train=5, val=3)
    train(
        "sft", keys_of(folder, "sft", "none") | {"output_dir": str(folder / "adapter"), "eval_strategy": "no"}
    )
    return folder


def keys_of(world, stage, quantization, **keys):
    shared = {
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "max_new_tokens": 8,
        "precision": "fp32",
        "quantization": quantization,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "eval_strategy": "epoch",
        "validation_batch_size": 2,
        "save_strategy": "no",
        "seed": 3,
    }
    stages = {
        "sft": {"lora_rank": 4},
        "scst": {"num_samples": 3, "table_steps": 0, "adapter": str(world / "adapter")},
    }
    return shared | stages[stage] | keys


@pytest.fixture(scope="module")
def one_process(world):
    """Log and adapter of one process, computed once for each stage and quantisation."""
    known = {}

    def run(stage, quantization, **keys):
        case = repr((stage, quantization, keys))
        if case not in known:
            folder = world / f"one-{len(known)}"
            keys = keys_of(world, stage, quantization, output_dir=str(folder), **keys)
            known[case] = train(stage, keys), load_file(folder / "adapter_model.safetensors")
        return known[case]

    return run


def run_on_two(world, tmp_path, config, stage, quantization, job=train, **keys):
    """Log of each process and the adapter, with half the images per process."""
    out = tmp_path / "two"
    keys = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "output_dir": str(out)} | keys
    keys = keys_of(world, stage, quantization, **keys)
    environment = environment_of(device_config(config))
    logs = run_together(job, stage, keys, folder=tmp_path / "processes", environment=environment)
    return logs, load_file(out / "adapter_model.safetensors")


def assert_same_log(log, expected, tolerance):
    assert len(log) == len(expected)
    for entry, wanted in zip(log, expected, strict=True):
        assert set(entry) == set(wanted)
        names = [n for n in wanted if not any(part in n for part in (*DEPENDS_ON_PARTS, *DEPENDS_ON_TIME))]
        assert {n: entry[n] for n in names} == pytest.approx({n: wanted[n] for n in names}, **tolerance)


def assert_same_adapter(adapter, expected, tolerance):
    assert set(adapter) == set(expected)
    for name in expected:
        torch.testing.assert_close(adapter[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stream_is_shared_by_two_processes(stage, world, one_process, tmp_path):
    """Two and a half passes over 5 rows, 4 at a time: the last batch of a pass has fewer than processes."""
    stream = {"streaming": True, "stream_block": 1, "max_steps": 5, "eval_strategy": "no"}
    if stage == "scst":  # CIDEr-D would want a table of document frequencies
        stream |= {"rewards": [{"import_path": "tests.support.jobs:brevity"}]}
    expected_log, expected = one_process(stage, "none", **stream)
    logs, adapter = run_on_two(world, tmp_path, "cpu-2", stage, "none", **stream)
    assert_same_log(logs[0], expected_log, {"rel": 1e-4, "abs": 1e-5})
    assert_same_adapter(adapter, expected, 2e-4)  # Adam steps of 1e-2 magnify the rounding of small gradients


CONFIGS = ("cpu-2", "zero2", "zero3", "fsdp2")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("config", "quantization"),
    [*((config, "none") for config in CONFIGS), ("cpu-2", "nf4"), ("zero2", "nf4"), ("zero3", "nf4")],
)
def test_two_processes_learn_what_one_learns(world, one_process, tmp_path, config, quantization, stage):
    """FSDP2 has no 4-bit weights to divide: it is refused there."""
    expected_log, expected_adapter = one_process(stage, quantization)
    logs, adapter = run_on_two(world, tmp_path, config, stage, quantization)
    for log in logs:
        assert_same_log(log, expected_log, {"rel": 1e-4, "abs": 1e-5})
    assert_same_adapter(adapter, expected_adapter, 1e-5)


@pytest.mark.parametrize(
    ("config", "kind"), [("cpu-2", "prefix_tuning"), ("cpu-2", "bottleneck"), ("zero2", "prompt_tuning")]
)
def test_other_types_of_adapter(world, one_process, tmp_path, config, kind):
    """Adam divides a gradient by its size: where there is next to none, rounding would decide the direction.

    An epsilon far above the rounding of these gradients (1e-8) takes that away.
    """
    keys = {"adapter_type": kind, "lora_rank": 16, "adam_epsilon": 1e-3}  # the rank: its default, unused
    expected_log, expected_adapter = one_process("sft", "none", **keys)
    logs, adapter = run_on_two(world, tmp_path, config, "sft", "none", **keys)
    for log in logs:
        assert_same_log(log, expected_log, {"rel": 1e-4, "abs": 1e-5})
    assert_same_adapter(adapter, expected_adapter, 1e-5)


def test_terms_of_the_loss_under_zero3_with_4_bits(world, one_process, tmp_path):
    """The SFT policy is swapped in between a forward and its backward pass; micro-batches add up."""
    keys = {"kl_weight": 0.1, "cross_entropy_weight": 0.5, "entropy_weight": 0.01}
    expected_log, expected_adapter = one_process("scst", "nf4", **keys)
    keys |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    logs, adapter = run_on_two(world, tmp_path, "zero3", "scst", "nf4", **keys)
    assert [e["loss"] for e in logs[0] if "loss" in e] == pytest.approx(
        [e["loss"] for e in expected_log if "loss" in e], rel=1e-3, abs=1e-4
    )
    assert_same_adapter(adapter, expected_adapter, 1e-4)


@pytest.mark.parametrize(("config", "stage"), [("zero3", "scst"), ("fsdp2", "scst"), ("zero2", "sft")])
def test_resumed_runs_end_with_the_same_adapter(world, tmp_path, config, stage):
    """Divided optimizer state, generators of every process and the place in the data are all restored."""
    keys = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    _, whole = run_on_two(world, tmp_path, config, stage, "none", **keys)
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    (tmp_path / "two" / "run.json").unlink()
    logs, resumed = run_on_two(world, tmp_path, config, stage, "none", resume=True, **keys)
    assert [e["step"] for e in logs[0] if "loss" in e] == [1, 2, 3, 4]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_streamed_weights_sample_the_same_captions(world, one_process, tmp_path):
    """Processes whose captions have ended decode on until those of all have: nobody waits for ever."""
    keys = {"eval_strategy": "no", "rewards": [{"import_path": "tests.support.jobs:brevity"}]}
    expected_log, expected_adapter = one_process("scst", "none", **keys)
    logs, adapter = run_on_two(world, tmp_path, "zero3", "scst", "none", rollout_weights="streamed", **keys)
    assert_same_log(logs[1], expected_log, {"rel": 1e-4, "abs": 1e-5})
    assert_same_adapter(adapter, expected_adapter, 1e-5)


@pytest.mark.parametrize(
    ("config", "weights"),
    [("cpu-2", "unsharded"), ("zero3", "unsharded"), ("zero3", "streamed"), ("fsdp2", "unsharded")],
)
def test_captions_that_end_early_keep_nobody_waiting(world, tmp_path, config, weights):
    """8 tokens in one process, 1 in the other; in the last step of an epoch the latter has the only image."""
    keys = {"eval_strategy": "no", "rollout_weights": weights, "skip_zero_advantages": False}
    logs, _ = run_on_two(world, tmp_path, config, "scst", "none", job=train_where_one_ends_early, **keys)
    steps = [entry for entry in logs[0] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry, of_the_first in zip(steps, (2 / 4, 1 / 1, 2 / 4, 1 / 1), strict=True):
        assert of_the_first <= entry["ended_by_eos"] <= of_the_first + 0.25
    assert all(torch.isfinite(torch.tensor(entry["grad_norm"])) for entry in steps)
