"""Errors that a user can correct; commands print their message without a traceback."""

SHOWN_CHARACTERS = 200
"""Of a value from outside that a message repeats."""


def shown(value: object) -> str:
    """``repr`` of a value for a message, cut in the middle when it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits; lists within lists
        return f"an unprintable {type(value).__name__}"
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


class ScstError(Exception):
    """Something the user can correct; the message says what was expected, what came, and what to do."""

    exit_code = 2
    """Exit code of a command that ends with this error."""


class RecipeError(ScstError):
    """A wrong key or value in a recipe."""


class DataError(ScstError):
    """A dataset, caption file or image that cannot be used as it is."""


class RunStopped(ScstError):
    """A run ended early and can be resumed: nothing is wrong with its recipe."""

    exit_code = 1


class Interrupted(RunStopped):
    """A run was told to stop, and left a checkpoint.

    Args:
        message: what was saved, and how to resume.
        signal_number: the signal received; the exit code is 128 more, as in shells.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
