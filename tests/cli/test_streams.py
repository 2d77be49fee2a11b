"""Tar archives through the commands: counted, trained on in both stages, refused where they cannot work."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from tests.support.commands import call
from tests.support.tiny import SENTENCES, noise_images
from tests.support.worlds import write_model, write_recipe


def write_tar(path, images):
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            texts = [SENTENCES[(number + k) % len(SENTENCES)] for k in range(3)]
            for ending, data in (("png", buffer.getvalue()), ("txt", "\n".join(texts).encode())):
                entry = tarfile.TarInfo(f"{path.stem}_{number}.{ending}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_model(folder / "model")
    (folder / "data").mkdir()
    pictures = noise_images(11, 32)
    write_tar(folder / "data" / "train-0.tar", pictures[:4])
    write_tar(folder / "data" / "train-1.tar", pictures[4:8])
    write_tar(folder / "data" / "val-0.tar", pictures[8:])
    return folder


def flags(world, output, **keys):
    given = {
        "config": str(write_recipe(world / "recipe.yaml")),
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "output_dir": str(output),
        "quantization": "none",
        "precision": "fp32",
        "max_new_tokens": 8,
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        **keys,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
def test_both_stages_train_on_tar_archives(world, tmp_path, capsys):
    table = tmp_path / "frequencies.json"
    counted = ("document-frequencies", "--dataset", str(world / "data"), "--output", str(table))
    assert call("prepare", *counted) == 0
    assert json.loads(table.read_text())["num_images"] == 8
    evaluating = {"eval_strategy": "steps", "eval_steps": 2}
    assert call("sft", *flags(world, tmp_path / "sft", lora_rank=4, **evaluating)) == 0
    rewards = json.dumps([{"name": "cider_d", "kwargs": {"frequencies": str(table)}}])
    refined = flags(world, tmp_path / "rl", adapter=tmp_path / "sft", rewards=rewards, num_samples=2)
    assert call("scst", *refined) == 0
    for stage in ("sft", "rl"):
        assert json.loads((tmp_path / stage / "run.json").read_text())["steps"] == 2
    state = json.loads((tmp_path / "sft" / "trainer_state.json").read_text())
    assert {"eval_loss", "eval_cider_d"} <= set().union(*state["log_history"])


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("sft", {"max_steps": -1}, "max_steps: missing; a stream"),
        ("sft", {"caption_policy": "consensus"}, "caption_policy: consensus needs all captions"),
        ("sft", {"split_fractions": "80/20"}, "split_fractions: cannot be used with a stream"),
        ("scst", {"adapter": "embedded"}, "give kwargs: {frequencies: FILE}"),
    ],
)
def test_what_cannot_work_is_refused_by_a_dry_run(world, tmp_path, capsys, stage, keys, message):
    assert call(stage, *flags(world, tmp_path / "out", **keys), "--dry_run") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_names_the_form(world, tmp_path, capsys):
    assert call("sft", *flags(world, tmp_path / "out"), "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "# dataset form: tar" in shown
    assert "# dataset splits: {'train': None, 'val': None}" in shown
