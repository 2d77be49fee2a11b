"""Several rewards as one: weights, opinions, and errors that name the reward, the image and the caption."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import sys
import threading
import types

import pytest

from rewards.cider_d import CiderDReward
from rewards.errors import RewardError
from rewards.execution.calls import is_async
from rewards.execution.threads import CallThread
from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward, build_rewards
from rewards.scorers.document_frequencies import FILE_NAME, DocumentFrequencies
from tests.support.commands import start
from tests.support.rewards import CAPTIONS, NAN, call, constant, equal, mixture
from tests.support.waiting import PATIENCE_S


def test_the_weighted_sum_literally():
    # 2 * 1 - 0.5 * 4 = 0, 2 * 3 - 0.5 * 2 = 5; components are not weighted
    result = call(mixture(constant(1, 3), constant(4, 2), weights=[2.0, -0.5], names=["a", "b"]))
    assert result.total == [0.0, 5.0]
    assert result.components == {"a": [1.0, 3.0], "b": [4.0, 2.0]}


def test_every_column_arrives_by_keyword():
    seen = {}

    def reward(**columns):
        seen.update(columns)
        return [0.0, 0.0]

    call(
        mixture(reward), references=[["r"], ["s"]], prompts=["p", "p"], source=["A", "B"], trainer_state=None
    )
    assert seen == {
        "completions": CAPTIONS,
        "image_id": ["img_7", "img_8"],
        "references": [["r"], ["s"]],
        "prompts": ["p", "p"],
        "source": ["A", "B"],
        "trainer_state": None,
    }


def test_no_opinion_leaves_the_other_rewards():
    # caption 0: only b: 0.5 * 4 = 2; caption 1: 1 * 3 + 0.5 * 2 = 4
    result = call(mixture(constant(None, 3), constant(4, 2), weights=[1.0, 0.5], names=["a", "b"]))
    assert result.total == [2.0, 4.0]
    assert equal(result.components["a"], [NAN, 3.0])


def test_no_opinion_of_any_reward_is_nan():
    result = call(mixture(constant(None, 3), constant(None, None)))
    assert equal(result.total, [NAN, 3.0])


def test_asynchronous_rewards_run_together():
    """Each waits for the other: one after the other they would never finish."""
    arrived = [asyncio.Event(), asyncio.Event()]

    def waiting(me: int, value: float):
        async def reward(completions, **columns):
            arrived[me].set()
            await asyncio.wait_for(arrived[1 - me].wait(), timeout=PATIENCE_S)
            return [value] * len(completions)

        return reward

    result = call(mixture(waiting(0, 1.0), constant(10, 20), waiting(1, 100.0)))
    assert result.total == [111.0, 121.0]


async def asynchronous(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


def test_rewards_work_inside_a_running_event_loop():
    """A notebook runs one: asyncio.run alone would refuse."""

    async def notebook():
        return call(mixture(asynchronous, constant(1, 1)))

    assert asyncio.run(notebook()).total == [8.0, 12.0]


def test_a_plain_reward_may_run_its_own_event_loop():
    def reward(completions, **columns):
        return asyncio.run(asynchronous(completions))

    assert call(mixture(reward)).total == [7.0, 11.0]


def raising(completions, **columns):
    raise KeyError("lost")


async def raising_later(completions, **columns):
    await asyncio.sleep(0)
    raise KeyError("lost")


@pytest.mark.parametrize("function", [raising, raising_later])
def test_an_exception_names_the_reward_and_what_it_was_given(function):
    message = r"'bad' raised KeyError: 'lost' \(given 2 completions, .* image 'img_7', caption 'a river'\)"
    with pytest.raises(RewardError, match=message) as caught:
        call(mixture(constant(1, 2), function, names=["good", "bad"]))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high", [1.0]], ids=str)
def test_a_value_that_is_no_number_names_reward_image_and_caption(value):
    with pytest.raises(RewardError, match=r"'bad' returned .* for image 'img_8', caption 'a long road'"):
        call(mixture(constant(0.0, value), names=["bad"]))


def test_without_image_ids_the_caption_is_named():
    with pytest.raises(RewardError, match=r"'reward_0' returned nan for caption 'a river'"):
        mixture(constant(NAN, 0.0))(completions=CAPTIONS)


@pytest.mark.parametrize("values", [(), (1,), (1, 2, 3)])
def test_another_number_of_values_is_refused(values):
    with pytest.raises(
        RewardError, match=rf"'bad' must return one value per completion \(2\), got {len(values)}"
    ):
        call(mixture(constant(*values), names=["bad"]))


@pytest.mark.parametrize("answer", [None, 0.5])
def test_an_answer_that_is_no_list_is_refused(answer):
    with pytest.raises(RewardError, match="'bad' must return a list with one value per completion, got"):
        call(mixture(lambda **columns: answer, names=["bad"]))


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(RewardError, match=r"a name of its own, got \['a', 'a'\]"):
        mixture(constant(1, 2), constant(1, 2), names=["a", "a"])


def test_setup_and_state_reach_those_that_want_them(tmp_path):
    calls = []

    class Wants:
        def setup(self, dataset):
            calls.append(("setup", dataset))

        def state_dict(self):
            return {"calls": len(calls)}

        def load_state_dict(self, state):
            calls.append(("load_state_dict", state))

        def write_tables(self, folder):
            calls.append(("write_tables", folder))

        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    mixed = mixture(constant(1, 2), Wants())
    mixed.setup("dataset")
    state = mixed.state_dict()
    assert state == {"moments": {}, "rewards": {"reward_1": {"calls": 1}}}
    mixed.load_state_dict(state)
    mixed.write_tables(tmp_path)
    call(mixed)
    assert calls == [("setup", "dataset"), ("load_state_dict", {"calls": 1}), ("write_tables", tmp_path)]


def test_two_tables_do_not_overwrite_each_other(tmp_path):
    """CIDEr-D with and without the end of sequence: two tables of one name."""
    entries = [
        {"name": "cider_d"},
        {"import_path": "rewards.cider_d:CiderDReward", "kwargs": {"eos": "omitted"}},
    ]
    mixed = RewardMixture(build_rewards(entries))
    mixed.setup({"references": [["a river goes by ."], ["a long road is near trees ."]]})
    mixed.write_tables(tmp_path)
    places = [tmp_path / FILE_NAME, tmp_path / "CiderDReward" / FILE_NAME]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(places)
    assert [DocumentFrequencies.load(path).eos for path in places] == ["emitted", "omitted"]


def test_changed_document_frequencies_are_refused():
    before, now = (mixture(CiderDReward(), names=["cider_d"]) for _ in range(2))
    before.setup({"references": [["a river goes by ."], ["a road"]]})
    now.setup({"references": [["a river goes by ."], ["a rail"]]})
    before.load_state_dict(before.state_dict())
    message = (
        r"'cider_d': the document frequencies \(\w{6}\) are not those of the checkpoint \(\w{6}\): dataset"
    )
    with pytest.raises(RewardError, match=message):
        now.load_state_dict(before.state_dict())
    with pytest.raises(RewardError, match=r"no state of the rewards \['cider_d'\]"):
        now.load_state_dict({"moments": {}, "rewards": {}})


def test_a_reward_that_was_not_set_up_says_what_to_do():
    with pytest.raises(
        RewardError, match=r"^reward 'cider_d' counts with .* call setup\(dataset\) with them"
    ):
        call(mixture(CiderDReward()), references=[["a road"]] * 2)

    class Unready:
        words = None

        def setup(self, dataset):
            self.words = {"road"}

        def __call__(self, completions, **columns):
            return [float(text in self.words) for text in completions]

    mixed = mixture(Unready())
    with pytest.raises(
        RewardError, match=r"TypeError: .*; its `setup` was not called: call setup\(dataset\) of"
    ):
        call(mixed)
    mixed.setup({"references": []})
    assert call(mixed).total == [0.0, 0.0]


def test_cider_d_in_a_mixture(tmp_path):
    references = [["a river goes by ."], ["a long road is near trees ."]]
    mixed = mixture(CiderDReward(), constant(1, 1), weights=[1.0, 0.5], names=["cider_d", "one"])
    mixed.setup({"references": references})
    result = call(mixed, references=references, ended_by_eos=[True, False])
    assert result.total == [value + 0.5 for value in result.components["cider_d"]]
    assert min(result.components["cider_d"]) > 0
    mixed.write_tables(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["document_frequencies.json"]


def test_no_completions():
    assert mixture(constant())(completions=[]).total == []


def test_synchronous_rewards_run_one_after_the_other_beside_asynchronous_ones():
    """The asynchronous one, named last, must arrive for the first to go on; the others keep their order."""
    arrived, order = threading.Event(), []

    def first(completions, **columns):
        assert arrived.wait(5)
        order.append("first")
        return [1.0] * len(completions)

    def second(completions, **columns):
        order.append("second")
        return [10.0] * len(completions)

    async def arrives(completions, **columns):
        arrived.set()
        return [100.0] * len(completions)

    assert call(mixture(first, second, arrives)).total == [111.0, 111.0]
    assert order == ["first", "second"]


def test_an_asynchronous_reward_keeps_its_loop_between_calls():
    loops = []

    async def reward(completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    mixed = mixture(reward)
    call(mixed)
    call(mixed)
    assert loops[0] is loops[1]


class AsyncObject:
    async def __call__(self, completions, **columns):
        return [0.0] * len(completions)


def test_what_is_asynchronous():
    assert is_async(asynchronous)
    assert is_async(AsyncObject())
    assert is_async(functools.partial(AsyncObject(), target=1))
    assert not is_async(constant(1))
    assert not is_async(CiderDReward())


def grumpy(completions, **columns):
    """Raises on one caption only."""
    if "a long road" in completions:
        raise ValueError("no roads")
    return [0.0] * len(completions)


def test_the_caption_that_makes_a_reward_raise_is_found():
    """By calling it for one caption after the other; what it logs meanwhile is dropped."""
    logged = []

    def reward(completions, log_metric, **columns):
        log_metric("calls", 1)
        return grumpy(completions)

    message = (
        r"ValueError: no roads \(given 2 completions, raised by .* image 'img_8', caption 'a long road'\)"
    )
    with pytest.raises(RewardError, match=message):
        call(mixture(reward), log_metric=lambda *metric: logged.append(metric))
    assert logged == [("calls", 1)]


def test_an_error_that_no_caption_causes_alone_names_the_first():
    def reward(completions, **columns):
        if len(completions) > 1:
            raise ValueError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"given 2 completions, the first being image 'img_7', caption"):
        call(mixture(reward))


def test_a_reward_errors_own_message_is_named_too():
    def reward(completions, **columns):
        raise RewardError("there is no Java")

    with pytest.raises(RewardError, match="'bad' raised RewardError: there is no Java"):
        call(mixture(reward, names=["bad"]))


def hanging(completions, **columns):
    threading.Event().wait()


async def hanging_politely(completions, **columns):
    await asyncio.Event().wait()


@pytest.mark.parametrize("function", [hanging, hanging_politely])
def test_a_reward_that_hangs_is_not_waited_for(function):
    mixed = RewardMixture([WeightedReward("slow", function, timeout_s=0.2)])
    with pytest.raises(
        RewardError, match=r"'slow' did not answer within its `timeout_s` of 0.2 s .*'a river'"
    ):
        call(mixed)


def test_a_hung_reward_does_not_keep_the_process_alive():
    code = (
        "import threading\n"
        "from rewards.mixture import RewardMixture\n"
        "from rewards.registry import WeightedReward\n"
        "def slow(**columns): threading.Event().wait()\n"
        "RewardMixture([WeightedReward('slow', slow, timeout_s=0.2)])(completions=['a'])"
    )
    done = start("-c", code)
    assert "did not answer" in done.stderr


def test_threads_end_with_the_mixture():
    before = set(threading.enumerate())
    mixed = mixture(asynchronous, constant(1, 2))
    call(mixed)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del mixed
    gc.collect()
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


def test_a_reward_sees_the_gpu_of_the_thread_that_calls(monkeypatch):
    """A new thread begins on the first GPU; the second process must stay on the second."""
    chosen = []
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True, current_device=lambda: 3, set_device=chosen.append
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert CallThread("test").submit(lambda: list(chosen)).result(5) == [3]
