"""Evaluation and captioning on two processes: the files that one process writes."""

from __future__ import annotations

import json

import pytest

from scst.distributed.sharded_loader import BatchShards, PaddingExamples, shard_of
from tests.support.jobs import launch_script
from tests.support.processes import device_config, environment_of, run_together
from tests.support.worlds import write_model, write_risc


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioning")
    write_model(folder / "model")
    write_risc(folder / "data", train=1, val=5)
    return folder


def keys_of(world, **keys):
    shared = {"model_name_or_path": str(world / "model"), "precision": "fp32", "quantization": "none"}
    return shared | {"max_new_tokens": 8, "eval_batch_size": 2} | keys


def evaluate(folder, world):
    keys = keys_of(world, dataset=str(world / "data"), output_dir=str(folder), metrics=["cider_d", "bleu_4"])
    launch_script("evaluate", keys)


def caption(file, world):
    launch_script("caption", keys_of(world, output=str(file)), [str(world / "data" / "resized")])


@pytest.mark.slow
def test_evaluation_and_captions_are_those_of_one_process(world, tmp_path):
    """5 images of 2 processes: 3 and 2, none twice, none left out, in their order."""
    evaluate(tmp_path / "one", world)
    caption(tmp_path / "one.jsonl", world)
    environment = environment_of(device_config("cpu-2"))
    run_together(both, tmp_path, world, folder=tmp_path / "processes", environment=environment)
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert (tmp_path / "two" / "report.html").is_file()
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [row["image"].rpartition("/")[2] for row in rows] == [f"tile_{i}.png" for i in range(6)]
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


def both(folder, world):
    """Evaluation, then captions, of one process among others."""
    evaluate(folder / "two", world)
    caption(folder / "two.jsonl", world)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 13])
def test_shares_together_are_the_whole(count, num_shares):
    shares = [shard_of(range(count), num_shares, share) for share in range(num_shares)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Batches(list):
    """Batches of a sampler, as torch's BatchSampler has them."""

    sampler = range(7)
    batch_size = 3
    drop_last = False


def test_shares_of_batches_literally():
    """Batches of 3, 3 and 1: two processes take 2 + 1, 2 + 1, 1 + none."""
    batches = Batches([[0, 1, 2], [3, 4, 5], [6]])
    first, second = (list(BatchShards(batches, 2, share)) for share in range(2))
    assert first == [[0, 1], [3, 4], [6]]
    assert second == [[2], [5], [6]]
    assert [isinstance(batch, PaddingExamples) for batch in first] == [False, False, False]
    assert [isinstance(batch, PaddingExamples) for batch in second] == [False, False, True]
