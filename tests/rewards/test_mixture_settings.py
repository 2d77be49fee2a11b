"""Normalised rewards, their statistics, and the settings of an entry of a recipe."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.moments import Moments
from rewards.registry import WeightedReward, build_rewards
from tests.support.rewards import NAN, call, constant, equal, mixture


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


def test_statistics_are_saved_and_restored_exactly():
    values = [[0.1, 0.7], [0.3, 1 / 3], [2.0, 0.9]]
    whole = normalised(*values)
    expected = [call(whole).total for _ in values]
    first, second = normalised(*values[:2]), normalised(values[2])
    assert [call(first).total for _ in range(2)] == expected[:2]
    state = json.loads(json.dumps(first.state_dict()))
    assert list(state["moments"]["a"]) == ["count", "mean", "squares"]
    second.load_state_dict(state)
    assert call(second).total == expected[2]


def test_a_step_that_failed_half_way_is_taken_back():
    mixed = normalised([2, 4], [60, 80], [6, 8])
    call(mixed)
    before = mixed.moments.state_dict()
    call(mixed)
    mixed.moments.load_state_dict(before)
    # as without the call in between: 2, 4, 6, 8: mean 5, std sqrt(5)
    assert call(mixed).total == pytest.approx([1 / 5**0.5, 3 / 5**0.5])


def test_missing_statistics_are_refused():
    state = {"moments": {"b": {"count": 1, "mean": 0.0, "squares": 0.0}}, "rewards": {}}
    with pytest.raises(RewardError, match=r"no statistics of the normalised rewards \['a'\]"):
        normalised().load_state_dict(state)
    mixture(constant(1)).load_state_dict(state)  # nothing is normalised: nothing is missing


def test_rewards_with_state_get_it_back():
    class Counter:
        calls = 0

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

        def __call__(self, completions, **columns):
            self.calls += 1
            return [float(self.calls)] * len(completions)

    first, second = mixture(Counter()), mixture(Counter())
    call(first)
    second.load_state_dict(first.state_dict())
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
