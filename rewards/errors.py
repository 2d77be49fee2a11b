"""The errors of rewards and caption scorers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class RewardError(Exception):
    """A reward or scorer cannot be built, or gave a wrong answer; the message says what to do."""


class NamedRewardError(RewardError):
    """Its message names the reward already, so that callers need not add the name."""


class RunEnding(Exception):
    """A reward raised what ends a process (``sys.exit``, ``KeyboardInterrupt``): it ends the call only."""


@contextmanager
def contained() -> Iterator[None]:
    """Turn exceptions that would end the process into :class:`RunEnding`.

    Raises:
        RunEnding: in their place. What cancels or closes a coroutine is left alone.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        raise RunEnding(f"{told(error)}, which would have ended the run") from error


def told(error: BaseException) -> str:
    """Type and text of an exception; a text that is missing, endless or cannot be made is no obstacle."""
    if isinstance(error, RunEnding):
        return str(error)
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be made"
    name = type(error).__name__
    return f"{name}: {text[:2000]}" if text.strip() else f"{name} (without a text)"


def shown(value: object) -> str:
    """``repr`` of a value for a message, shortened; an object without one is named by its type."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."
