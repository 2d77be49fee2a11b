"""A reward can end the run with a sentence, and in no other way; it cannot change the run."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import TrainerState

from rewards.errors import RewardError, contained
from rewards.execution.batch import Batch, called, checked_values
from rewards.registry import build_rewards
from scst.objective.advantages import compute_advantages
from scst.rl.observed_state import observed_state
from scst.rl.reward_log import beside_own
from scst.training.step_metrics import Deviation, Mean
from tests.support.rewards import CAPTIONS, call, constant, mixture


class Mute(Exception):
    def __str__(self):
        raise ZeroDivisionError


class Shapeless:
    """Has no ``repr``."""

    def __repr__(self):
        raise ZeroDivisionError


class EndsEverything(BaseException):
    pass


ENDINGS = {
    "sys.exit": (SystemExit(), r"SystemExit \(without a text\), which would have ended the run"),
    "sys.exit(0)": (SystemExit(0), "SystemExit: 0, which would have ended the run"),
    "a text": (SystemExit("enough"), "SystemExit: enough, which would have ended the run"),
    "Ctrl-C of its own": (KeyboardInterrupt(), r"KeyboardInterrupt \(without a text\), which would"),
    "past every except": (EndsEverything("x"), "EndsEverything: x, which would have ended the run"),
    "no text": (ValueError(), r"ValueError \(without a text\)"),
    "blanks": (ValueError("  \n"), r"ValueError \(without a text\)"),
    "no text to be had": (Mute(), "Mute: its text cannot be made"),
    "an endless text": (ValueError("x" * 10**6), "ValueError: x{2000} "),
    "the end of an iterator": (StopIteration(), "StopIteration|RuntimeError"),
    "cancelled": (asyncio.CancelledError(), "CancelledError"),
    "a generator's end": (GeneratorExit(), "GeneratorExit"),
}


def raising(error, how):
    def plain(completions, **columns):
        raise error

    async def asynchronous(completions, **columns):
        raise error

    def generator(completions, **columns):
        yield 0.0
        raise error

    return {"plain": plain, "async": asynchronous, "generator": generator}[how]


@pytest.mark.parametrize("how", ["plain", "async", "generator"])
@pytest.mark.parametrize(("error", "said"), ENDINGS.values(), ids=ENDINGS)
def test_whatever_a_reward_raises_is_a_sentence(error, said, how):
    mixed = mixture(constant(1, 2), raising(error, how), names=["good", "bad"])
    with pytest.raises(RewardError, match=f"^reward 'bad' raised ({said})") as caught:
        call(mixed)
    assert len(str(caught.value)) < 3000
    assert "img_7" in str(caught.value)


def test_a_loop_of_asynchronous_rewards_survives_them():
    """asyncio ends the thread of a loop in which a task raises SystemExit: the next call would hang."""
    answers = iter([SystemExit(0), None])

    async def once(completions, **columns):
        if error := next(answers, None):
            raise error
        return [1.0] * len(completions)

    mixed = mixture(once)
    with pytest.raises(RewardError):
        call(mixed)
    assert call(mixed).total == [1.0, 1.0]


@pytest.mark.parametrize("method", ["setup", "state_dict", "load_state_dict", "write_tables"])
def test_other_methods_cannot_exit_either(method, tmp_path):
    reward = type("Bad", (), {"__call__": lambda self, completions, **columns: [0.0, 0.0]})()
    type(reward).state_dict = type(reward).load_state_dict = lambda self, *arguments: {}
    setattr(type(reward), method, lambda self, *arguments: sys.exit(0))
    mixed = mixture(reward)
    argument = {
        "setup": [{"references": []}],
        "load_state_dict": [{"rewards": {"reward_0": {}}, "moments": {}}],
        "write_tables": [tmp_path],
    }
    with pytest.raises(RewardError, match=rf"{method} of reward 'reward_0' raised SystemExit: 0"):
        getattr(mixed, method)(*argument.get(method, []))


def test_closing_is_no_way_out(caplog):
    reward = type("Bad", (), {"__call__": lambda self, completions, **columns: [0.0], "close": sys.exit})()
    with caplog.at_level(logging.WARNING):
        mixture(reward).close()
    assert "close of reward 'reward_0' raised" in caplog.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("class f:\n    def __init__(self): raise SystemExit", "could not be built .*SystemExit"),
        ("class f:\n    def __init__(self): 1 / 0", "could not be built .*ZeroDivisionError"),
    ],
)
def test_building_is_no_way_out(tmp_path, monkeypatch, source, said):
    (tmp_path / "strange_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange_rewards", raising=False)
    with pytest.raises(RewardError, match=said):
        build_rewards([{"import_path": "strange_rewards:f", "kwargs": {}}])
    sys.modules.pop("strange_rewards", None)


ANSWERS = {
    "too large for a float": [10**400, 1],
    "too large for float32": [1e39, 1],
    "complex": [1j, 1],
    "a text": "ab",
    "texts": ["1", "2"],
    "bytes": b"ab",
    "NaN": [float("nan"), 1],
    "infinity": [float("inf"), 1],
    "a column of a matrix": torch.ones(2, 1),
    "a matrix": torch.ones(2, 2),
    "no dimension": torch.tensor(1.0),
    "a complex tensor": torch.ones(2) * 1j,
    "an array with a dimension too many": np.ones((2, 1)),
    "lists": [[1.0], [2.0]],
    "tensors of one number": [torch.ones(1), torch.ones(1)],
    "a mapping": {0.5: 1, 0.6: 2},
    "a set": {0.5, 0.6},
    "nothing": None,
    "a number": 1.0,
    "one too many": [1.0, 2.0, 3.0],
    "one too few": [1.0],
    "endless": itertools.repeat(1.0),
    "objects": [object(), object()],
    "without repr": [Shapeless(), 1.0],
    "without repr as a whole": Shapeless(),
    "a long text": ["x" * 10**6, 1.0],
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_no_list_of_numbers_is_a_sentence(answer):
    with pytest.raises(RewardError, match=r"^reward 'bad' (returned|must return)") as caught:
        call(mixture(lambda completions, **columns: answer, names=["bad"]))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "answer",
    [
        [1, 0.5],
        (1.0, 0.5),
        torch.tensor([1.0, 0.5]),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, 0.5], dtype=np.float16),
        [np.float32(1), torch.tensor(0.5)],
        [True, Fraction(1, 2)],
        [Decimal(1), Decimal("0.5")],
        (value for value in (1.0, 0.5)),
        {"a": 1.0, "b": 0.5}.values(),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_every_other_form_of_numbers_is_accepted(answer):
    """The negative control."""
    batch = Batch({"completions": CAPTIONS})
    values = checked_values("good", called(lambda completions: answer, batch), batch)
    assert values == [1.0, 0.5]
    assert all(type(value) is float for value in values)


def test_the_largest_reward_is_finite_where_it_is_used():
    largest = checked_values("good", [3.4e38, -3.4e38], Batch({"completions": CAPTIONS}))
    assert torch.tensor(largest).isfinite().all()
    assert compute_advantages("greedy", torch.tensor([[1e38]]), torch.tensor([0.0])).isfinite().all()


def test_an_endless_generator_has_the_time_limit():
    told_to_end = threading.Event()

    def endless(completions, **columns):
        while not told_to_end.is_set():
            yield from ()

    mixed = mixture(endless, names=["bad"])
    object.__setattr__(mixed.rewards[0], "timeout_s", 0.2)
    with pytest.raises(RewardError, match="'bad' did not answer within"):
        call(mixed)
    told_to_end.set()  # its thread would take half of this process's time from all later tests


def test_one_reward_cannot_change_what_the_next_one_gets():
    seen = {}

    def vandal(completions, references, trainer_state, **columns):
        completions[:] = ["vandalised"] * len(completions)
        references[0].clear()
        references.clear()
        trainer_state.global_step = 10**6
        return [0.0, 0.0]

    def honest(completions, references, trainer_state, **columns):
        seen.update(completions=completions, references=references, step=trainer_state.global_step)
        return [1.0, 1.0]

    state = TrainerState(global_step=3)
    references = [["a river ."], ["a road ."]]
    call(mixture(vandal, honest), references=references, trainer_state=state)
    expected = {"completions": CAPTIONS, "references": [["a river ."], ["a road ."]], "step": 3}
    assert seen == expected
    assert references == expected["references"]


def test_the_state_that_rewards_see_is_not_the_trainers():
    """Up to date, readable like the real one, and of no consequence when it is written to."""
    state = TrainerState(global_step=3, max_steps=9, log_history=[{"loss": 1.0}, {"loss": 2.0}])
    state.stateful_callbacks = {"EarlyStopping": {"patience": 1}}
    before = str(state)
    seen = observed_state(state)
    assert (seen.global_step, seen.max_steps, len(seen.log_history)) == (3, 9, 2)
    assert seen.log_history[-1] == {"loss": 2.0}
    assert [entry["loss"] for entry in seen.log_history] == [1.0, 2.0]
    assert seen.log_history[:1] == [{"loss": 1.0}]
    seen.global_step = seen.max_steps = 0
    seen.best_metric = 1e9
    seen.log_history[0]["loss"] = -1.0
    seen.stateful_callbacks["EarlyStopping"]["patience"] = 0
    with pytest.raises((TypeError, AttributeError)):
        seen.log_history.append({})
    assert str(state) == before
    state.log_history.append({"loss": 3.0})
    assert len(seen.log_history) == 2, "of the moment when the reward was asked"


def test_log_metric_has_no_name_of_the_trainers():
    own = {"entropy": Mean(2.0, 1), "advantage_std": Deviation(1.0, 1.0, 1)}
    logged = {name: Mean(9.0, 1) for name in ("entropy", "advantage_std", "loss", "eval_cider_d", "mine")}
    assert set(beside_own(logged, own)) == {
        "logged_entropy",
        "logged_advantage_std",
        "logged_loss",
        "logged_eval_cider_d",
        "mine",
    }


def test_containing_lets_ordinary_exceptions_pass():
    with pytest.raises(KeyError), contained():
        raise KeyError("x")
