"""Several rewards as one: weights, opinions, and errors that name the reward, the image and the caption."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import math
import random
import statistics
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from rewards.calls import is_async
from rewards.cider import CiderDReward
from rewards.document_frequencies import FILE_NAME, DocumentFrequencies
from rewards.errors import RewardError
from rewards.mixture import STATE_NAME, RewardMixture
from rewards.moments import Moments
from rewards.registry import WeightedReward, build_rewards
from rewards.threads import CallThread

ROOT = Path(__file__).resolve().parents[2]

CAPTIONS = ["a river", "a long road"]
NAN = math.nan


def mixture(*functions, weights=None, names=None) -> RewardMixture:
    weights = weights or [1.0] * len(functions)
    names = names or [f"reward_{i}" for i in range(len(functions))]
    return RewardMixture([WeightedReward(*entry) for entry in zip(names, functions, weights, strict=True)])


def constant(*values):
    """A reward function that answers with ``values``."""
    return lambda completions, **columns: list(values)


def equal(actual: list[float], expected: list[float]) -> bool:
    return len(actual) == len(expected) and all(
        a == e or (math.isnan(a) and math.isnan(e)) for a, e in zip(actual, expected, strict=True)
    )


def call(mixed: RewardMixture, **columns):
    return mixed(completions=CAPTIONS, image_id=["img_7", "img_8"], **columns)


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
            await asyncio.wait_for(arrived[1 - me].wait(), timeout=5)
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

        def save_state(self, folder):
            calls.append(("save_state", folder))

        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    mixed = mixture(constant(1, 2), Wants())
    mixed.setup("dataset")
    mixed.save(tmp_path)
    call(mixed)
    assert calls == [("setup", "dataset"), ("save_state", tmp_path)]


def test_two_tables_do_not_overwrite_each_other(tmp_path):
    """CIDEr-D with and without the end of sequence: two tables of one name."""
    entries = [
        {"name": "cider_d"},
        {"import_path": "rewards.cider:CiderDReward", "kwargs": {"eos": "omitted"}},
    ]
    mixed = RewardMixture(build_rewards(entries))
    mixed.setup({"references": [["a river goes by ."], ["a long road is near trees ."]]})
    mixed.save(tmp_path)
    policies = {
        name: DocumentFrequencies.load(folder / FILE_NAME).eos
        for name, folder in mixed.state_folders(tmp_path).items()
    }
    assert sorted(policies.values()) == ["emitted", "omitted"]
    assert (tmp_path / FILE_NAME).is_file(), "the first one keeps the place of a single one"


def test_cider_d_in_a_mixture(tmp_path):
    references = [["a river goes by ."], ["a long road is near trees ."]]
    mixed = mixture(CiderDReward(), constant(1, 1), weights=[1.0, 0.5], names=["cider_d", "one"])
    mixed.setup({"references": references})
    result = call(mixed, references=references, ended_by_eos=[True, False])
    assert result.total == [value + 0.5 for value in result.components["cider_d"]]
    assert min(result.components["cider_d"]) > 0
    mixed.save(tmp_path)
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
    time.sleep(600)


async def hanging_politely(completions, **columns):
    await asyncio.sleep(600)


@pytest.mark.parametrize("function", [hanging, hanging_politely])
def test_a_reward_that_hangs_is_not_waited_for(function):
    mixed = RewardMixture([WeightedReward("slow", function, timeout_s=0.2)])
    started = time.monotonic()
    with pytest.raises(
        RewardError, match=r"'slow' did not answer within its `timeout_s` of 0.2 s .*'a river'"
    ):
        call(mixed)
    assert time.monotonic() - started < 5


def test_a_hung_reward_does_not_keep_the_process_alive():
    code = (
        "import time\n"
        "from rewards.mixture import RewardMixture\n"
        "from rewards.registry import WeightedReward\n"
        "def slow(**columns): time.sleep(600)\n"
        "RewardMixture([WeightedReward('slow', slow, timeout_s=0.2)])(completions=['a'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
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


# --- normalisation


def normalised(*values, weight=1.0):
    """A mixture of one normalised reward that gives ``values`` call by call."""
    answers = iter(values)
    return RewardMixture(
        [WeightedReward("a", lambda completions, **columns: next(answers), weight, normalize=True)]
    )


def test_normalised_rewards_literally():
    # first call: 2, 4: mean 3, std 1: -1, 1; times the weight 0.5
    # second: 2, 4, 6, 8: mean 5, variance (9 + 1 + 1 + 9) / 4 = 5: (6 - 5) / sqrt(5), (8 - 5) / sqrt(5)
    mixed = normalised([2, 4], [6, 8], weight=0.5)
    assert call(mixed).total == [-0.5, 0.5]
    result = call(mixed)
    assert result.total == pytest.approx([0.5 / 5**0.5, 1.5 / 5**0.5], rel=1e-15)
    assert result.components == {"a": [6.0, 8.0]}, "as the function gave them"
    assert result.contributions == {"a": result.total}


def test_no_opinion_does_not_count():
    mixed = normalised([None, 4], [None, None], [8, None])
    assert equal(call(mixed).total, [NAN, 0.0])
    assert equal(call(mixed).total, [NAN, NAN])
    # 4, 8: mean 6, std 2
    assert equal(call(mixed).total, [1.0, NAN])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-12, 1e12, 1 / 3])
def test_equal_rewards_are_normalised_to_zero(value):
    """Not to the rounding error of their mean, blown up."""
    mixed = normalised()
    assert {x for _ in range(50) for x in mixed.mixed({"a": [value] * 3}).total} == {0.0}


def test_moments_of_batches_are_those_of_all_numbers():
    """Also beside a mean that is large against the deviation, where sums of squares lose all digits."""
    draws = random.Random(0)
    numbers = [1e8 + draws.gauss(0, 1) for _ in range(1000)]
    merged = Moments()
    for start in range(0, 1000, 7):
        merged = merged.merged(Moments.of(numbers[start : start + 7]))
    assert merged.count == 1000
    assert merged.mean == pytest.approx(statistics.fmean(numbers), rel=1e-15)
    assert merged.std == pytest.approx(statistics.pstdev(numbers), rel=1e-7)
    assert Moments().merged(Moments()) == Moments()


def test_statistics_are_saved_and_restored_exactly(tmp_path):
    values = [[0.1, 0.7], [0.3, 1 / 3], [2.0, 0.9]]
    whole = normalised(*values)
    expected = [call(whole).total for _ in values]
    first, second = normalised(*values[:2]), normalised(values[2])
    assert [call(first).total for _ in range(2)] == expected[:2]
    first.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [STATE_NAME]
    second.load(tmp_path)
    assert call(second).total == expected[2]


def test_missing_statistics_are_refused(tmp_path):
    (tmp_path / STATE_NAME).write_text(json.dumps({"b": {"count": 1, "mean": 0.0, "squares": 0.0}}))
    with pytest.raises(RewardError, match=r"no statistics of the normalised rewards \['a'\]"):
        normalised().load(tmp_path)
    mixture(constant(1)).load(tmp_path)  # nothing is normalised: nothing is missing


def test_rewards_with_load_state_get_it(tmp_path):
    class Counter:
        calls = 0

        def save_state(self, folder):
            (folder / "calls").write_text(str(self.calls))

        def load_state(self, folder):
            self.calls = int((folder / "calls").read_text())

        def __call__(self, completions, **columns):
            self.calls += 1
            return [float(self.calls)] * len(completions)

    first, second = mixture(Counter()), mixture(Counter())
    call(first)
    first.save(tmp_path)
    second.load(tmp_path)
    assert call(second).total == [2.0, 2.0]


def test_processes_share_their_statistics():
    """Two processes with 2, 4 and 6, 8 normalise as one with 2, 4, 6, 8 does."""
    numbers = []
    normalised([2, 4]).mixed({"a": [2.0, 4.0]}, lambda mine: [numbers.append(mine) or mine])
    normalised([6, 8]).mixed({"a": [6.0, 8.0]}, lambda mine: [numbers.append(mine) or mine])
    results = [normalised().mixed({"a": values}, lambda mine: numbers) for values in ([2.0, 4.0], [6.0, 8.0])]
    # mean 5, std sqrt(5)
    assert [x for r in results for x in r.total] == pytest.approx([x / 5**0.5 for x in (-3, -1, 1, 3)])


# --- settings of an entry


def test_the_settings_of_an_entry():
    (reward,) = build_rewards(
        [{"name": "cider_d", "weight": 2, "normalize": True, "workers": 3, "timeout_s": 60}]
    )
    assert (reward.weight, reward.normalize, reward.workers, reward.timeout_s) == (2.0, True, 3, 60.0)
    (reward,) = build_rewards([{"name": "cider_d"}])
    assert (reward.weight, reward.normalize, reward.workers, reward.timeout_s) == (1.0, False, 0, 300.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize": "yes please"}, "normalize must be true or false, got 'yes please'"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"workers": 1.5}, "workers must be 0 or more, got 1.5"),
        ({"workers": True}, "workers must be 0 or more, got True"),
        ({"timeout_s": 0}, "timeout_s must be seconds, above 0, got 0"),
        ({"timeout_s": math.inf}, "timeout_s must be seconds, above 0, got inf"),
        ({"timeout": 3}, r"`normalize`, `workers`, `timeout_s`; got \['name', 'timeout'\]"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(RewardError, match=message):
        build_rewards([{"name": "cider_d"} | settings])
