"""Rewards by name, by import path and by entry point; a wrong entry is named."""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from functools import partial
from importlib.metadata import EntryPoint

import pytest

from rewards import registry
from rewards.cider_d import CiderDReward
from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import REWARDS, WeightedReward, build_rewards


def brevity(completions, target=12, **columns):
    """A plain function."""
    return [-abs(len(text.split()) - target) for text in completions]


async def slow_brevity(completions, target=12, **columns):
    await asyncio.sleep(0)
    return brevity(completions, target)


class Polite:
    """A class: ``kwargs`` go to its constructor."""

    def __init__(self, word: str = "please"):
        self.word = word

    def __call__(self, completions, **columns):
        return [float(self.word in text) for text in completions]


class Remembers:
    """An object with the optional parts of the contract; ``ready`` is an instance."""

    def __init__(self):
        self.seen = []

    def setup(self, dataset):
        self.seen.append(dataset)

    def state_dict(self):
        return {"seen": len(self.seen)}

    def load_state_dict(self, state):
        self.seen.append(state)

    def __call__(self, completions, scale=1.0, **columns):
        return [scale] * len(completions)


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """A module ``my_rewards`` as a researcher would write one."""
    module = types.ModuleType("my_rewards")
    module.brevity, module.slow_brevity, module.Polite, module.ready = (
        brevity,
        slow_brevity,
        Polite,
        Remembers(),
    )
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


@pytest.fixture
def announced(monkeypatch):
    """Lets packages announce rewards: a call with name -> import path."""

    def announce(**points: str) -> None:
        found = [EntryPoint(name, value, "scst.rewards") for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "scst.rewards" else [])

    return announce


def one(**entry):
    (reward,) = build_rewards([entry])
    return reward


def test_a_name_and_its_kwargs():
    reward = one(name="cider_d", weight=0.5, kwargs={"eos": "omitted"})
    assert (reward.name, reward.weight) == ("cider_d", 0.5)
    assert isinstance(reward.function, CiderDReward)
    assert reward.function.eos == "omitted"


def test_the_weight_is_one_by_default():
    assert one(name="cider_d").weight == 1.0


def test_an_import_path_to_a_function():
    reward = one(import_path="my_rewards:brevity", weight=2)
    assert reward.name == "brevity"
    assert reward.function(completions=["a road"]) == [-10]


def test_kwargs_are_bound_to_a_function():
    reward = one(import_path="my_rewards:brevity", kwargs={"target": 3})
    assert reward.function(completions=["a road"], image_id=["x"]) == [-1]


def test_an_async_function_stays_async_with_kwargs():
    answer = one(import_path="my_rewards:slow_brevity", kwargs={"target": 3}).function(completions=["a road"])
    assert inspect.isawaitable(answer)
    assert asyncio.run(answer) == [-1]


def test_an_import_path_to_a_class_is_constructed():
    reward = one(import_path="my_rewards:Polite", name="manners", kwargs={"word": "thanks"})
    assert reward.name == "manners"
    assert reward.function(completions=["thanks", "please"]) == [1.0, 0.0]


def test_a_ready_object_keeps_setup_and_state_when_kwargs_are_bound(plugin):
    function = one(import_path="my_rewards:ready", kwargs={"scale": 0.5}).function
    function.setup("dataset")
    function.load_state_dict(function.state_dict())
    assert plugin.ready.seen == ["dataset", {"seen": 1}]
    assert function(completions=["a"]) == [0.5]
    assert not hasattr(one(import_path="my_rewards:brevity", kwargs={"target": 1}).function, "setup")


def test_the_same_entry_twice_gives_two_objects():
    assert one(name="cider_d").function is not one(name="cider_d").function


def test_functions_objects_classes_and_ready_rewards_are_taken_as_they_are():
    ready = WeightedReward("manners", Polite(), weight=0.5)
    entries = ["bleu", brevity, slow_brevity, partial(Remembers(), scale=2.0), CiderDReward, ready]
    rewards = build_rewards([*entries, {"name": "length", "kwargs": {"target": 9}}])
    names = ["bleu", "brevity", "slow_brevity", "Remembers", "cider_d", "manners", "length"]
    assert [reward.name for reward in rewards] == names
    assert rewards[1].function is brevity
    assert rewards[5] is ready
    assert {reward.weight for reward in rewards} == {1.0, 0.5}


def test_a_mixture_of_plain_functions():
    mixed = RewardMixture([brevity, slow_brevity])
    assert mixed(completions=["a road"]).total == [-20.0]


@pytest.mark.parametrize(
    "entries", [[brevity, brevity], ["bleu", {"name": "bleu", "weight": 2}]], ids=["functions", "names"]
)
def test_two_rewards_of_one_name_are_refused_with_a_remedy(entries):
    with pytest.raises(RewardError, match=r"a name of its own, got \[.*rename one .*WeightedReward\(name, "):
        build_rewards(entries)


@pytest.mark.parametrize(
    "rewards", ["cider_d", {"name": "cider_d"}, brevity], ids=["name", "entry", "function"]
)
def test_a_single_reward_is_no_list(rewards):
    with pytest.raises(RewardError, match=r"must be a list, got .*: put it into brackets"):
        RewardMixture(rewards)


@pytest.mark.parametrize("method", ["save_state", "load_state"])
@pytest.mark.parametrize("kwargs", [{}, {"target": 3}])
def test_the_state_methods_of_earlier_versions_are_refused_by_name(plugin, method, kwargs):
    old = type("Old", (Polite,), {method: lambda self, folder: None})()
    plugin.old = old
    sentence = rf"'old' has `{method}\(folder\)`.*`state_dict\(\)`.*`load_state_dict\(state\)`"
    with pytest.raises(RewardError, match=sentence):
        one(import_path="my_rewards:old", kwargs=kwargs)
    with pytest.raises(RewardError, match=sentence):
        RewardMixture([WeightedReward("old", old)])


def test_half_a_state_and_no_function_are_refused():
    half = type("Half", (Polite,), {"state_dict": lambda self: {}})()
    with pytest.raises(
        RewardError, match=r"'half' needs both `state_dict\(\)` and `load_state_dict\(state\)`"
    ):
        WeightedReward("half", half)
    with pytest.raises(RewardError, match="'nine' must be a function or an object that can be called, got 9"):
        WeightedReward("nine", 9)


def test_packages_announce_rewards(announced):
    announced(brevity="my_rewards:brevity", manners="my_rewards:Polite")
    assert one(name="brevity", kwargs={"target": 2}).function(completions=["a road"]) == [0]
    assert one(name="manners").function(completions=["please"]) == [1.0]


def test_a_package_cannot_replace_a_built_in_reward(announced):
    announced(cider_d="my_rewards:brevity")
    assert isinstance(one(name="cider_d").function, CiderDReward)


def test_a_broken_package_breaks_only_its_own_reward(announced):
    announced(broken="no_such_package:reward", gone="my_rewards:gone", brevity="my_rewards:brevity")
    assert one(name="brevity").function is brevity
    with pytest.raises(RewardError, match=r"'broken': 'no_such_package:reward' cannot be imported"):
        one(name="broken")
    with pytest.raises(RewardError, match=r"'gone': 'my_rewards:gone' cannot be imported"):
        one(name="gone")


def test_an_unknown_name_lists_the_known(announced):
    announced(brevity="my_rewards:brevity")
    with pytest.raises(RewardError, match="'cidre'; known: bad_ending, bleu, brevity, cider_d"):
        one(name="cidre")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"import_path": "my_rewards.brevity"},
            r"must be 'package.module:attribute', got 'my_rewards.brevity'",
        ),
        ({"import_path": "no_such_package:reward"}, r"'no_such_package:reward' cannot be imported"),
        ({"import_path": "my_rewards:brevty"}, r"'my_rewards:brevty' cannot be imported.*brevty"),
        ({"weight": 1.0}, r"`name` or `import_path`.*got \['weight'\]"),
        ({"name": "cider_d", "wieght": 1.0}, r"got \['name', 'wieght'\]"),
        ({"name": "cider_d", "kwargs": {"sigma": 3}}, r"'cider_d' could not be built with \{'sigma': 3\}"),
        ({"name": "cider_d", "kwargs": {"eos": "always"}}, r"emitted, omitted, got 'always'"),
        ({"name": "cider_d", "kwargs": {"frequencies": "absent.json"}}, r"No such file.*absent\.json"),
        ({"name": "cider_d", "weight": "much"}, r"'cider_d': weight must be a finite number, got 'much'"),
        ({"name": "cider_d", "weight": float("nan")}, r"weight must be a finite number, got nan"),
        ({"name": "cider_d", "weight": None}, r"weight must be a finite number, got None"),
        (3, r"a reward is a name, a function, or a mapping with `name` or `import_path`, got 3"),
    ],
    ids=str,
)
def test_wrong_entries_are_refused(entry, message):
    with pytest.raises(RewardError, match=message):
        build_rewards([entry])


def test_a_bare_name_is_enough():
    (reward,) = build_rewards(["cider_d"])
    assert (reward.name, reward.weight) == ("cider_d", 1.0)


def test_every_built_in_reward_is_built_or_says_what_it_needs():
    """Under its own name, which TRL reads off the object."""
    needs = {"clipscore": "no model given", "length": "target"}
    for name in REWARDS:
        if name in needs:
            with pytest.raises(RewardError, match=needs[name]):
                build_rewards([name])
        else:
            assert callable(build_rewards([name])[0].function)


def test_an_empty_list_is_refused():
    with pytest.raises(RewardError, match="`rewards` is empty"):
        build_rewards([])
