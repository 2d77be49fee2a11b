"""Checkpoints on disk: with a manifest, verified, the newest complete one, and pruning that loses nothing."""

from __future__ import annotations

import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from scst.data.files import STAGING, clean_up, move_files
from scst.errors import RecipeError
from scst.training.run_folder import checkpoints
from scst.training.run_folder.manifest import read_manifest, verify, write_manifest


def write(folder, step, *, complete=True, ended=False):
    """A checkpoint with two files, one of them in a folder of its own."""
    path = folder / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"w" * 100)
    (path / "global_step" / "shard.bin").write_bytes(b"s" * 10)
    if complete:
        write_manifest(path, step=step, ended=ended)
    return path


def steps(folder):
    return [step for step, _ in checkpoints.numbered_checkpoints(folder)]


def test_a_folder_with_its_manifest_is_complete(tmp_path):
    path = write(tmp_path, 3, ended=True)
    assert verify(path) is None
    record = read_manifest(path)
    assert (record["step"], record["ended"]) == (3, True)
    assert record["files"]["global_step/shard.bin"]["bytes"] == 10
    # echo -n ssssssssss | sha256sum
    assert record["files"]["global_step/shard.bin"]["sha256"].startswith("4b179810791a")


@pytest.mark.parametrize(
    ("damage", "fault"),
    {
        "no manifest": (lambda p: (p / "complete.json").unlink(), "not written to its end"),
        "manifest cut": (lambda p: (p / "complete.json").write_text('{"files": {'), "cannot be read"),
        "other JSON": (lambda p: (p / "complete.json").write_text("[]"), "cannot be read"),
        "file lost": (lambda p: (p / "weights.bin").unlink(), "weights.bin is missing"),
        "file cut": (lambda p: (p / "weights.bin").write_bytes(b"w" * 99), "99 bytes instead of 100"),
        "bit flipped": (lambda p: (p / "weights.bin").write_bytes(b"w" * 99 + b"v"), "is damaged"),
    }.values(),
    ids=["no manifest", "manifest cut", "other JSON", "file lost", "file cut", "bit flipped"],
)
def test_every_damage_is_found_and_passed_over(tmp_path, damage, fault):
    write(tmp_path, 9)
    newest = write(tmp_path, 10)  # 10 is newer than 9, as numbers go
    damage(newest)
    assert fault in verify(newest)
    said = []
    found = checkpoints.checkpoint_to_resume(str(tmp_path), True, said.append)
    assert found == str(tmp_path / "checkpoint-9")
    assert len(said) == 1
    assert "checkpoint-10 is passed over for the one before" in said[0]
    with pytest.raises(RecipeError, match=r"resume: '.*checkpoint-10' is no complete checkpoint"):
        checkpoints.checkpoint_to_resume(str(tmp_path), str(newest))


def test_nothing_complete_starts_from_the_beginning(tmp_path):
    write(tmp_path, 2, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.checkpoint_to_resume(str(tmp_path), True) is None
    assert checkpoints.checkpoint_to_resume(str(tmp_path), False) is None
    assert steps(tmp_path) == [2]


def test_publishing_replaces_a_damaged_one(tmp_path):
    write(tmp_path, 4, complete=False)
    new = write(tmp_path / STAGING, 4, ended=True)
    checkpoints.publish(new, tmp_path / "checkpoint-4")
    assert read_manifest(tmp_path / "checkpoint-4")["ended"]
    clean_up(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, 2, [10, 8, 6, 4, 2]),
        (0, 2, [10, 8, 6, 4, 2]),
        (2, 0, [10, 8]),
        (2, 2, [10, 2]),
        (3, 2, [10, 8, 2]),
        (1, 2, [10, 2]),  # the best and the last are two
        (1, 10, [10]),
        (9, 2, [10, 8, 6, 4, 2]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path, limit, best, left):
    for step in (2, 4, 6, 8, 10):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, limit, {best})
    assert steps(tmp_path) == left


def test_pruning_does_not_count_what_is_damaged(tmp_path):
    """By age alone 2 and 4 would go, and nothing good would be left."""
    for step in (2, 4, 6, 8):
        write(tmp_path, step, complete=step < 6)
    checkpoints.prune(tmp_path, 2)
    assert steps(tmp_path) == [8, 6, 4, 2]
    write(tmp_path, 10)
    checkpoints.prune(tmp_path, 2)
    assert steps(tmp_path) == [10, 4]


def test_files_are_replaced_one_by_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").write_text("old")
    (tmp_path / "out" / "run.json").write_text("kept")
    new = write(tmp_path, 1, complete=False)
    move_files(new, tmp_path / "out")
    assert (tmp_path / "out" / "weights.bin").read_bytes() == b"w" * 100
    assert (tmp_path / "out" / "run.json").read_text() == "kept"


def test_write_failures_of_torch_and_safetensors_are_recognised(tmp_path):
    """Real ones: the system refuses to let files grow (EFBIG)."""
    tensors, before = {"a": torch.zeros(100_000)}, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    errors = []
    try:
        for save, name in ((torch.save, "a.pt"), (save_file, "a.safetensors")):
            try:
                save(tensors, tmp_path / name)
            except Exception as error:
                errors.append(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(errors) == 2
    assert all(checkpoints.is_write_failure(error) for error in errors), errors
    assert not checkpoints.is_write_failure(KeyError("b"))
