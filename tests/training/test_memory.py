"""Out of memory: the step is the same in smaller parts, wherever it ran out; and peaks per phase."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from scst.rl.rewarder import Rewarder
from scst.training.micro_batcher import DoesNotFit, MicroBatcher, is_out_of_memory
from scst.training.phase_meter import PhaseMeter
from scst.types import Rollout
from tests.support.jobs import train_short_of_memory
from tests.support.memory import (
    ATTEMPTS,
    CUDA,
    HOOKS,
    PLACES,
    make_scarce,
    run_out,
)
from tests.support.processes import device_config, environment_of, run_together
from tests.support.stages import adapter_weights, assert_same_adapter

CPU = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = "DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000000 bytes."


@pytest.fixture(autouse=True)
def no_attempts():
    ATTEMPTS.clear()
    HOOKS.clear()


@pytest.fixture
def captions(monkeypatch):
    """Every sampled and greedy caption of a run, in order."""
    seen = []
    original = Rewarder.__call__

    def recording(self, rollout, *args, **kwargs):
        seen.extend([*rollout.captions, rollout.greedy_captions])
        return original(self, rollout, *args, **kwargs)

    monkeypatch.setattr(Rewarder, "__call__", recording)
    return seen


KEYS = {"max_steps": 3, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0}
"""Plain gradient descent: Adam would make a whole step of a gradient that is rounding alone."""


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_step_is_the_same_in_smaller_parts(
    run_stage, sft_adapter, tmp_path, monkeypatch, captions, place, accumulation
):
    """Limit 1 of 4 images: two halvings in the first step, none later."""
    keys = KEYS | {"adapter": str(sft_adapter), "gradient_accumulation_steps": accumulation}
    keys |= {"cross_entropy_weight": 0.1, "kl_weight": 0.05} if accumulation == 2 else {}
    whole = run_stage("scst", output_dir=str(tmp_path / "whole"), **keys)
    expected = list(captions)
    captions.clear()
    make_scarce(place, 1, monkeypatch.setattr)
    cut = run_stage("scst", output_dir=str(tmp_path / "cut"), **keys)

    assert captions == expected
    assert_same_adapter(tmp_path / "cut", tmp_path / "whole")
    start = adapter_weights(sft_adapter)
    moved = adapter_weights(tmp_path / "cut")
    assert any((moved[name] - start[name]).abs().max() > 1e-4 for name in start), "something was learnt"
    assert ATTEMPTS[place, 4] == ATTEMPTS[place, 2] == 1
    phase = "rollout" if place == "rollout" else "loss"
    other = "loss" if place == "rollout" else "rollout"
    assert (cut.batchers[phase].limit, cut.batchers[other].limit) == (1, None)
    assert [entry[f"micro_batch_{phase}"] for entry in logged(cut)] == [1, 1, 1]
    assert [entry[f"micro_batch_{other}"] for entry in logged(cut)] == [4, 4, 4]
    for name in ("loss", "kl", "grad_norm", "entropy", "logprob_gap", "most_common_caption"):
        values, wanted = ([entry[name] for entry in logged(run)] for run in (cut, whole))
        assert values == pytest.approx(wanted, rel=1e-3, abs=1e-5), name


def logged(run):
    return [entry for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("place", PLACES)
def test_uneven_parts(run_stage, sft_adapter, tmp_path, monkeypatch, place):
    """Micro-batches of 5, 5 and 2 images where 3 fit: parts of 3 and 2."""
    keys = KEYS | {"adapter": str(sft_adapter), "per_device_train_batch_size": 5}
    run_stage("scst", output_dir=str(tmp_path / "whole"), **keys)
    make_scarce(place, 3, monkeypatch.setattr)
    cut = run_stage("scst", output_dir=str(tmp_path / "cut"), **keys)
    assert_same_adapter(tmp_path / "cut", tmp_path / "whole")
    sizes = {size: count for (at, size), count in ATTEMPTS.items() if at == place}
    assert set(sizes) >= {5, 3, 2}
    assert 4 not in sizes
    assert sizes[5] == 1
    assert cut.batchers["rollout" if place == "rollout" else "loss"].limit == 3


@pytest.mark.parametrize(
    ("place", "advice"), [("rollout", "num_samples"), ("backward", "gradient_checkpointing: true")]
)
def test_one_image_too_much_says_what_to_change(run_stage, sft_adapter, tmp_path, monkeypatch, place, advice):
    make_scarce(place, 0, monkeypatch.setattr)
    with pytest.raises(DoesNotFit, match=f"out of memory with one image at a time. Try .*{advice}.*CUDA"):
        run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(sft_adapter), **KEYS)


def test_scoring_fewer_images_at_a_time_is_the_same_step(run_stage, sft_adapter, tmp_path):
    """scoring_batch_size: rollouts of 4 images, scored 4, 3 (and 1), 1 at a time."""
    adapters = {}
    for size in (0, 3, 1):
        keys = KEYS | {"adapter": str(sft_adapter), "max_steps": 2, "scoring_batch_size": size}
        trainer = run_stage("scst", output_dir=str(tmp_path / str(size)), **keys)
        logged = [log["micro_batch_loss"] for log in trainer.state.log_history if "micro_batch_loss" in log]
        assert logged == [float(size or 4)] * 2
        adapters[size] = torch.cat(
            [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
        )
    for size in (3, 1):
        assert (adapters[size] - adapters[0]).abs().max() < 1e-6


def test_nothing_is_split_where_processes_meet():
    batches = MicroBatcher("scoring", "less", can_split=False)
    with pytest.raises(
        DoesNotFit, match=r"with 4 images at a time. Try per_device_train_batch_size .*, less"
    ):
        batches.map(lambda images: run_out(4, 2, "work"), 4)
    assert batches.limit is None


def test_done_parts_are_not_done_again():
    batches = MicroBatcher("work", "less", limit=2)
    scarce = iter([None, None, MemoryError()])  # the third call fails: after parts of 2 that had worked

    def work(images):
        error = next(scarce, None)
        if error:
            raise error
        return list(range(images.start, images.stop))

    assert [image for part in batches.map(work, 7) for image in part] == list(range(7))
    assert batches.limit == 1
    assert batches.size(8) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError(CPU), True),
        (RuntimeError(WINDOWS), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory of this in the report"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_failed_allocation_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        MicroBatcher("work", "less").map(lambda images: 1 / 0, 4)


def test_joined_parts_of_a_rollout_are_the_rollout(run_stage, sft_adapter, tmp_path):
    """Also where parts end at different lengths: captions are padded as a common rollout would be."""
    keys = KEYS | {"adapter": str(sft_adapter), "max_steps": 1}
    rollout = run_stage("scst", output_dir=str(tmp_path / "out"), **keys).last_step.rollout
    parts = [rollout.select(slice(i, i + 1)) for i in range(4)]
    trimmed = [trim(part) for part in parts]
    joined = Rollout.join(trimmed, pad_token_id=0)
    for field in dataclasses.fields(rollout):
        expected, actual = getattr(rollout, field.name), getattr(joined, field.name)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        elif field.name == "prompts":
            assert torch.equal(actual.input_ids, expected.input_ids)
            for one, other in zip(actual.vision, expected.vision, strict=True):
                assert torch.equal(one["pixel_values"], other["pixel_values"])
        elif field.name == "image_features":
            assert all(map(torch.equal, actual, expected))
        else:
            assert actual == expected


def trim(rollout):
    """Without the columns in which every caption has ended."""
    length = max(int(rollout.completion_mask.sum(-1).max()), int(rollout.greedy_mask.sum(-1).max()))
    names = ("completion_ids", "completion_mask", "sampled_logprobs", "greedy_ids", "greedy_mask")
    return dataclasses.replace(rollout, **{name: getattr(rollout, name)[..., :length] for name in names})


def test_peak_of_a_phase_is_that_of_the_phase():
    """300 MB that one phase holds for a moment count there and not in the next."""
    meter = PhaseMeter(torch.device("cpu"))
    with meter.measure("small") as before:
        torch.ones(10)
    with meter.measure("large") as large:
        torch.ones(75 * 2**20, dtype=torch.float32)
    with meter.measure("small") as after:
        torch.ones(10)
    assert large.peak_gb - before.peak_gb == pytest.approx(300 / 1024, abs=0.05)
    if Path("/proc/self/clear_refs").exists():
        assert after.peak_gb == pytest.approx(before.peak_gb, abs=0.05)
    assert meter.peak_gb["small"] == max(before.peak_gb, after.peak_gb)
    assert meter.seconds["small"] == before.seconds + after.seconds


def test_phases_are_logged(run_stage, sft_adapter, tmp_path):
    run = run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(sft_adapter), max_steps=2)
    for entry in logged(run):
        for phase in ("rollout", "reward", "loss"):
            assert 0.1 < entry[f"memory_gb_{phase}"] < 64
            assert entry[f"seconds_{phase}"] > 0


@pytest.mark.slow
def test_one_process_short_of_memory_does_not_hang_the_other(run_stage, world, sft_adapter, tmp_path):
    """Two processes of 2 x 2 images, of which one runs out in backward: the adapter of one process with 8."""
    keys = KEYS | {"adapter": str(sft_adapter), "max_steps": 2}
    run_stage("scst", output_dir=str(tmp_path / "one"), per_device_train_batch_size=8, **keys)
    keys |= {"model_name_or_path": str(world / "model"), "dataset": str(world / "data"), "table_steps": 0}
    keys |= {"quantization": "none", "max_new_tokens": 12, "num_samples": 3, "save_strategy": "no", "seed": 3}
    keys |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "precision": "fp32"}
    folder, environment = tmp_path / "processes", environment_of(device_config("cpu-2"))
    keys["output_dir"] = str(tmp_path / "two")
    run_together(train_short_of_memory, "scst", keys, folder=folder, environment=environment)
    assert "out of memory with 2 images at a time; from now on 1" in (folder / "process-1.log").read_text()
    assert_same_adapter(tmp_path / "two", tmp_path / "one")
