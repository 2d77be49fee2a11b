"""A reward in worker processes: the same values as in this process, and no process is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from rewards.cider_d import CiderDReward
from rewards.errors import RewardError
from rewards.execution.batch import Batch
from rewards.execution.workers import WorkerPool
from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward
from tests.support.paths import ROOT
from tests.support.rewards import Recorder, hanging
from tests.support.waiting import PATIENCE_S, is_alive, wait_for_the_end_of

pytestmark = pytest.mark.slow

CAPTIONS = ["a river", "", " .", "word " * 400, "🙂 a\nb|||c", "a long road near a river", "a river"]


async def asynchronous(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


def grumpy(completions, **columns):
    if any("road" in text for text in completions):
        raise KeyError("no roads")
    if "exit" in completions:
        sys.exit(0)
    return [0.0] * len(completions)


def one_too_many_and_one_too_few(completions, **columns):
    return [0.0] * (len(completions) + (1 if completions[0] == "a river" else -1))


def dying(completions, **columns):
    os.kill(os.getpid(), signal.SIGKILL)


class Unready:
    def setup(self, dataset):
        raise OSError("no such model")

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)


@pytest.fixture
def mixture():
    """Builds mixtures of one reward in workers; ends them."""
    built = []

    def build(function, workers=2, **settings) -> RewardMixture:
        built.append(RewardMixture([WeightedReward("bad", function, workers=workers, **settings)]))
        return built[-1]

    yield build
    for mixed in built:
        mixed.close()


def test_the_values_are_those_of_this_process(mixture):
    """CIDEr-D bit for bit, on degenerate captions and references, with more workers than some batches."""
    references = [["a river goes by ."], [" ."], ["🙂"], ["a road"] * 5, ["a b c"], ["a long road ."], ["a"]]
    here, there = CiderDReward(), mixture(CiderDReward(), workers=3)
    for reward in (here, there):
        reward.setup({"references": references})
    columns = {"references": references, "ended_by_eos": [True, False, True, True, False, True, True]}
    for count in (7, 2, 0):
        part = {name: values[:count] for name, values in columns.items()}
        expected = here(completions=CAPTIONS[:count], **part)
        assert there(completions=CAPTIONS[:count], **part).total == expected
    assert max(here(completions=CAPTIONS, **columns)) > 1


def test_setup_columns_logs_and_state(mixture, tmp_path):
    """Set up once in each worker with plain lists; logs are replayed, the state's live parts are not sent."""
    dataset = type("Rows", (), {"column_names": ["references"], "__getitem__": lambda self, name: (["r"],)})()
    mixed, logged = mixture(Recorder()), []
    mixed.setup(dataset)
    state = SimpleNamespace(global_step=7, log_history=[{}], live=lambda: None)
    for _ in range(2):
        logged.clear()
        values = mixed.components(
            completions=["a b", "a b c", "", "a"],
            image=[Image.new("RGB", (5, 5))] * 4,
            trainer_state=state,
            log_metric=lambda name, value: logged.append((name, value)),
            log_extra=None,
        )["bad"]
        assert values[:2] + values[3:] == [2.0, 3.0, 1.0]
        assert values[2] != values[2], "no opinion"
        names = ["setups", "step", "first_words", "own_process", "pixels"]
        assert [name for name, _ in logged] == names * 2, "worker by worker"
        assert [value for name, value in logged if name in ("setups", "step")] == [1, 7, 1, 7]
        assert [value for name, value in logged if name == "first_words"] == [2, 0], "in order"
        assert sum(value for name, value in logged if name == "pixels") == 4 * 5, "a PIL image travels"
    processes = {value for name, value in logged if name == "own_process"}
    assert len(processes) == 2
    assert os.getpid() not in processes
    mixed.write_tables(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_text() == "[{'references': [['r']]}]"
    saved = mixed.state_dict()["rewards"]["bad"]
    assert saved["setups"] == [{"references": [["r"]]}]
    assert saved["process"] in processes
    mixed.load_state_dict(mixed.state_dict())
    mixed.components(
        completions=["a", "b"],
        image=[Image.new("RGB", (5, 5))] * 2,
        trainer_state=state,
        log_metric=lambda name, value: logged.append((name, value)),
    )
    assert [value for name, value in logged[-10:] if name == "setups"] == [2, 2], "every worker has it"
    mixed.close()
    wait_for_the_end_of(processes)


def test_an_asynchronous_function_works_there_too(mixture):
    assert mixture(asynchronous)(completions=["a", "abc", "ab"]).total == [1.0, 3.0, 2.0]


def test_what_a_worker_raises_names_the_caption(mixture):
    mixed = mixture(grumpy)
    with pytest.raises(
        RewardError,
        match=r"'bad' raised KeyError: 'no roads' \(given 3 .* alone: image 'c', caption 'a road'\)",
    ) as caught:
        mixed(completions=["a", "b", "a road"], image_id=["a", "b", "c"])
    with pytest.raises(RewardError, match=r"'bad' raised SystemExit: 0, which would .*caption 'exit'"):
        mixed(completions=["a", "b", "exit"], image_id=["a", "b", "c"])
    assert "in grumpy" in "".join(caught.value.__cause__.__notes__), "the worker's traceback"


def test_lengths_are_checked_part_by_part(mixture):
    """3 values of 2 and 1 of 2 are 4 of 4 together."""
    with pytest.raises(RewardError, match=r"one value per completion \(2\), got 3 .*caption 'a river'"):
        mixture(one_too_many_and_one_too_few)(completions=["a river", "b", "c", "d"])


def test_a_worker_that_hangs_is_ended(mixture):
    mixed = mixture(hanging, timeout_s=3)
    mixed.setup({"references": []})
    (pool,) = mixed.calls.pools.values()
    pids = [worker.process.pid for worker in pool._workers]
    with pytest.raises(RewardError, match=r"'bad' did not answer within its `timeout_s` of 3 s .*'a river'"):
        mixed(completions=["a river", "b"])
    wait_for_the_end_of(pids)


def test_a_worker_that_dies_is_told(mixture):
    with pytest.raises(RewardError, match=r"worker process of reward 'bad' ended \(exit code -9;"):
        mixture(dying)(completions=["a"])


def test_a_failing_setup_names_the_reward(mixture):
    mixed = mixture(Unready())
    for _ in range(2):  # the second time as well
        with pytest.raises(RewardError, match="setup of reward 'bad' raised OSError: no such model"):
            mixed.setup({"references": []})


def test_what_cannot_be_sent_is_refused(mixture):
    with pytest.raises(RewardError, match=r"'bad' has `workers`, but the reward itself cannot be sent"):
        mixture(lambda completions, **columns: [])
    with pytest.raises(RewardError, match=r"but the column 'tool' cannot be sent"):
        mixture(asynchronous)(completions=["a"], tool=[lambda: None])


PARENT = """
import os, signal, threading
from pathlib import Path
from rewards.execution.batch import Batch
from rewards.execution.workers import WorkerPool
from tests.support.rewards import Recorder, hanging
from tests.support.waiting import wait_until

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background jobs without it
    pools = [WorkerPool("idle", Recorder(), 2), WorkerPool("busy", hanging, 1)]
    for pool in pools:
        pool.setup({"references": []})
    threading.Thread(target=pools[1].call, args=(Batch({"completions": ["a"]}),), daemon=True).start()
    wait_until(Path(os.environ["SCST_TEST_HANGING"]).exists)
    print(*(worker.process.pid for pool in pools for worker in pool._workers), flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_no_worker_outlives_its_training_process(tmp_path, how):
    """Neither an idle one nor one that hangs in its reward."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SCST_TEST_HANGING": str(tmp_path / "hangs")}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        parent.send_signal(how)
        parent.wait(PATIENCE_S)
        wait_for_the_end_of(pids)
    finally:
        parent.kill()
        parent.stdout.close()


def test_parts_are_even_and_in_order():
    batch = Batch({"completions": list("abcde"), "image_id": (1, 2, 3, 4, 5), "trainer_state": "s"})
    parts = batch.split(3)
    assert ["".join(part.columns["completions"]) for part in parts] == ["a", "bc", "de"]
    assert [part.columns["image_id"] for part in parts] == [(1,), (2, 3), (4, 5)]
    assert {part.columns["trainer_state"] for part in parts} == {"s"}
    assert len(batch.split(9)) == 5


def test_nothing_starts_before_it_is_needed():
    pool = WorkerPool("idle", Recorder(), 2)
    assert pool._workers == []
    pool.close()
