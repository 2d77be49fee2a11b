"""Errors that a user can mend; launch scripts print their message without a traceback."""


class ScstError(Exception):
    """Something the user can put right; the message says what was expected, what came, and what to do."""

    exit_code = 2
    """Of a command line that ends with this error."""


class RecipeError(ScstError):
    """A wrong key or value in a recipe."""


class DataError(ScstError):
    """A dataset, caption file or image that cannot be used as it is."""


class RunStopped(ScstError):
    """A run ended before its time and can go on: nothing is wrong with its recipe."""

    exit_code = 1


class Interrupted(RunStopped):
    """A run was told to stop, and left a checkpoint.

    Args:
        message: what was saved, and how to go on.
        signal_number: what it was told with; the exit code is 128 more, as shells count.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
