"""What the processes of these tests do."""

from __future__ import annotations

import os
from typing import Any

import torch

from scst.cli.arguments import Arguments
from scst.config.reader import build_recipe
from scst.rollout import distribution
from tests.support.commands import call, command_of
from tests.support.memory import make_scarce
from tests.support.stages import run_recipe


def train(stage: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """A training stage as its command runs it; returns what it logged."""
    torch.set_num_threads(1)
    return run_recipe(stage, keys).state.log_history


def launch_script(stage: str, keys: dict[str, Any], positional: list[str] | None = None) -> None:
    """Another command, as it runs itself."""
    torch.set_num_threads(1)
    command_of(stage).run(Arguments(build_recipe(stage, keys), positional=positional or []))


def exit_code(stage: str, *flags: str) -> int:
    """A command with these arguments, as a shell sees it."""
    torch.set_num_threads(1)
    return call(stage, *flags)


def train_short_of_memory(stage: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The second process has memory for the backward pass of one image at a time."""
    if os.environ["RANK"] == "1":
        make_scarce("backward", 1)
    return train(stage, keys)


def brevity(completions: list[str], **columns: Any) -> list[float]:
    """A reward: minus the number of words."""
    return [-float(len(text.split())) for text in completions]


def train_where_one_ends_early(stage: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The first process' captions end after a token, those of the others hardly ever."""
    policy_logits = distribution.policy_logits

    def ending(logits: torch.Tensor, *, eos_token_id: int, **settings: Any) -> torch.Tensor:
        if os.environ["RANK"] == "0":
            logits = logits.index_add(-1, torch.tensor([eos_token_id]), torch.full((len(logits), 1), 50.0))
        return policy_logits(logits, eos_token_id=eos_token_id, **settings)

    distribution.policy_logits = ending
    return train(stage, keys)
