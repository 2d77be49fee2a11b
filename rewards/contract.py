"""What a reward is: a function of captions, with optional methods for data, state and processes.

This is the one file to read before writing a reward. The smallest reward is a plain function::

    def brevity(completions, **columns):
        return [-abs(len(caption.split()) - 12) for caption in completions]

The contract of the call is that of TRL: the same object works in ``GRPOTrainer``. The methods of
:class:`OptionalMethods` are called where a reward has them. A reward inherits from nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rewards.errors import RewardError

RewardAnswer = Sequence[float | None] | Awaitable[Sequence[float | None]]
"""N values, None for "no opinion"; or a coroutine that gives them."""

OPTIONAL_METHODS = ("setup", "state_dict", "load_state_dict", "write_tables", "close")
REPLACED_METHODS = ("save_state", "load_state")


class RewardFunction(Protocol):
    """A function, or an object that can be called; ``async def`` is fine too."""

    def __call__(self, *args: Any, **columns: Any) -> RewardAnswer:
        """Reward N completions. All arguments come by keyword.

        Args:
            columns: ``completions``: N captions (lists of messages for TRL's conversational prompts), and
                every other column with one value per completion: ``prompts``, ``completion_ids``,
                ``references``, ``image_id``, ``image``, ``ended_by_eos`` and what else the dataset has.
                Beside them, once per call: ``trainer_state``, and the functions ``log_metric(name, value)``
                and ``log_extra(name, values)``.

        Returns:
            N finite numbers; None for "no opinion".
        """


class OptionalMethods(Protocol):
    """Methods that a reward may have beside the call; each is optional by itself.

    In worker processes (``workers`` above 0) every worker has a copy: ``setup``, ``load_state_dict`` and
    ``close`` reach all of them, ``state_dict`` and ``write_tables`` the first one.
    """

    def setup(self, dataset: Any) -> None:
        """Look at the training data, once, before the first call.

        Args:
            dataset: ``dataset["references"]`` holds a list of human captions for every training image,
                ``dataset["image_id"]`` its ids.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run must get back: plain values and tensors. Saved in every checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; called after ``setup``.

        Raises:
            RewardError: the state cannot be continued, e.g. the data have changed.
        """

    def write_tables(self, folder: Path) -> None:
        """Write files that say what the reward counts with (document frequencies) into a run's folder."""

    def close(self) -> None:
        """End what the reward has started, such as processes."""


def check_contract(name: str, function: Any) -> None:
    """Refuse what is no reward, and methods of the contract of version 0.1.

    Raises:
        RewardError: ``function`` cannot be called, has ``save_state`` or ``load_state``, or has only one of
            ``state_dict`` and ``load_state_dict``.
    """
    if not callable(function):
        raise RewardError(
            f"reward {name!r} must be a function or an object that can be called, got {function!r}"
        )
    for old in REPLACED_METHODS:
        if hasattr(function, old):
            raise RewardError(
                f"reward {name!r} has `{old}(folder)`, which is not called any more: give it `state_dict()`, "
                f"which returns plain values or tensors, and `load_state_dict(state)`, which restores them"
            )
    if hasattr(function, "state_dict") != hasattr(function, "load_state_dict"):
        raise RewardError(
            f"reward {name!r} needs both `state_dict()` and `load_state_dict(state)`, or neither"
        )
