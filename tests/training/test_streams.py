"""Training on a stream is training on a finite dataset of the same rows, and resumes at the very next one."""

from __future__ import annotations

import pytest
import torch

import scst
from rewards.errors import RewardError
from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.data.open_stream import load_stream
from scst.errors import RecipeError
from scst.rl.refine import scst_trainer
from scst.sft.finetune import sft_trainer
from scst.training.validation import ValidationSettings
from tests.support.worlds import write_model, write_risc

pytestmark = pytest.mark.slow

ARGUMENTS = {
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "save_steps": 3,
    "report_to": "none",
    "train_sampling_strategy": "sequential",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """6 images: batches of 4 and 2, so that 5 steps are two passes and a half."""
    folder = tmp_path_factory.mktemp("stream")
    write_model(folder / "model")
    write_risc(folder / "data", train=6, val=3)
    finite = scst.load_dataset(str(folder / "data"))
    table = DocumentFrequencies.from_references(finite["train"]["references"][:], eos="emitted")
    table.save(folder / "frequencies.json")
    return folder


def trainer_of(stage, world, data, output_dir, **training):
    policy = scst.load_policy(
        str(world / "model"),
        adapter=scst.LoRA(rank=4),
        quantization="none",
        precision="fp32",
        max_new_tokens=8,
    )
    settings = {"seed": 3, "training": ARGUMENTS | training}
    if stage == "sft":
        return sft_trainer(policy, data, str(output_dir), **settings)
    table = str(world / "frequencies.json")
    rewards = [{"name": "cider_d", "kwargs": {"frequencies": table}}]
    objective = scst.Objective(baseline="leave_one_out", cross_entropy_weight=0.5)
    return scst_trainer(
        policy,
        data,
        str(output_dir),
        rewards=rewards,
        num_samples=3,
        objective=objective,
        table_steps=0,
        **settings,
    )


def outcome(trainer, resume=None):
    """Losses of the logged steps, and the adapter's weights."""
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return losses, weights


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, weight in one[1].items():
        assert torch.equal(weight, other[1][name]), name


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_the_same_steps_as_on_a_finite_dataset_and_after_a_resume(stage, world, tmp_path):
    finite = scst.load_dataset(str(world / "data"))
    expected = outcome(trainer_of(stage, world, finite, tmp_path / "finite", save_strategy="no"))
    assert len(expected[0]) == 5

    def stream():
        return load_stream(str(world / "data"), "train", block=1)

    assert_same(outcome(trainer_of(stage, world, stream(), tmp_path / "stream")), expected)
    resumed = trainer_of(stage, world, stream(), tmp_path / "stream")
    assert_same(outcome(resumed, str(tmp_path / "stream" / "checkpoint-3")), expected)
    assert resumed.stream.position.state_dict() | {"source": None} == {
        "pass_": 2,
        "block": 4,
        "row": 0,
        "source": None,
    }


def test_what_a_stream_cannot_have_is_refused_before_training(world, tmp_path):
    data = load_stream(str(world / "data"), "train")
    with pytest.raises(RecipeError, match="max_steps: missing"):
        trainer_of("sft", world, data, tmp_path, max_steps=-1)
    policy = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=4), quantization="none")
    with pytest.raises(RewardError, match=r"cider_d.*asks for the references of all training images"):
        scst_trainer(policy, data, str(tmp_path), rewards=["cider_d"], training=ARGUMENTS)


def test_the_held_out_loss_is_of_as_many_images_as_are_captioned(world, tmp_path):
    data = scst.load_dataset(str(world / "data"))
    policy = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=4), quantization="none")
    settings = ARGUMENTS | {"eval_strategy": "steps", "per_device_eval_batch_size": 1}
    trainer = sft_trainer(
        policy, data, str(tmp_path), validation=ValidationSettings(images=2), training=settings
    )
    assert (len(data["val"]), len(trainer.validation), len(trainer.get_eval_dataloader())) == (3, 2, 2)
