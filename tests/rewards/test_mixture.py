"""Several rewards as one: weights, opinions, and errors that name the reward, the image and the caption."""

from __future__ import annotations

import asyncio
import math

import pytest

from rewards.cider import CiderDReward
from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward

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
