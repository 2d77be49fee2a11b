"""Validation inside training: the captions of the rollout engine, in the memory of a training step."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scst.evaluation.captioning import caption_images
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder, forbidden_token_mask
from scst.rollout.greedy import greedy_captions
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

EVALUATED = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "max_steps": 4,
    "validation_images": 48,
    "model_name_or_path": "embedded:scenes-paligemma",
    "dataset": "embedded:scenes",
    "max_train_images": 16,
    "max_eval_images": 48,
    "max_new_tokens": 12,
    "per_device_train_batch_size": 4,
}


@pytest.mark.parametrize("version", [1, 2])
def test_greedy_captions_are_those_of_generate(request, tiny_processor, images, version):
    model = request.getfixturevalue("tiny_model" if version == 1 else "tiny_model_v2")
    tokenizer = tiny_processor.tokenizer
    forbidden = forbidden_token_mask(tiny_processor, model.config.get_text_config().vocab_size)
    policy = Policy(model, forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id)
    limits = {"max_new_tokens": 9, "min_new_tokens": 2}
    found = greedy_captions(
        policy, tiny_processor, PromptEncoder.of(tiny_processor).prompt_batch(images, ["go"] * 4), **limits
    )
    expected = caption_images(model, tiny_processor, images, "go", "greedy", **limits)
    assert found == [(c.text, c.ended_by_eos, c.num_tokens) for c in expected]
    assert len({text for text, _, _ in found}) > 1


def peaks(log):
    training = max(entry[name] for entry in log for name in entry if name.startswith("memory_gb_"))
    return training, [entry["eval_memory_gb"] for entry in log if "eval_memory_gb" in entry]


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_evaluation_stays_within_the_memory_of_training(run_stage, tmp_path, stage):
    """Resident size on the CPU, the allocator's count on CUDA."""
    if stage == "scst":
        run_stage(
            "sft", output_dir=str(tmp_path / "sft"), **EVALUATED | {"eval_strategy": "no", "max_steps": 1}
        )
    keys = {"adapter": str(tmp_path / "sft"), "eval_on_start": False} if stage == "scst" else {}
    trainer = run_stage(stage, output_dir=str(tmp_path / "out"), **EVALUATED | keys)
    training, evaluations = peaks(trainer.state.log_history)
    assert len(evaluations) == 2
    assert max(evaluations) <= training * 1.01
    assert trainer.validation.batches.limit == 4


@pytest.mark.slow
def test_an_evaluation_that_takes_more_is_made_smaller(tmp_path):
    """The wrong twin: 48 images at a time, against one in a training step.

    In a process of its own: one that ran other tests holds on to their memory, and its resident size does not
    grow before all of that is in use again.
    """
    keys = EVALUATED | {"validation_batch_size": 48, "per_device_train_batch_size": 1}
    keys |= {"max_steps": 2, "logging_steps": 1}
    flags = [text for name, value in keys.items() for text in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "launch/sft.py",
        "--config",
        "quickstart/sft",
        "--output_dir",
        str(tmp_path / "out"),
        *flags,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    training, (evaluation,) = peaks(state["log_history"])
    assert evaluation > training * 1.01
    assert "from now on 24 images at a time" in " ".join((done.stdout + done.stderr).split())
