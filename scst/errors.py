"""Errors that a user can mend; launch scripts print their message without a traceback."""


class ScstError(Exception):
    """Something the user can put right; the message says what was expected, what came, and what to do."""


class RecipeError(ScstError):
    """A wrong key or value in a recipe."""


class DataError(ScstError):
    """A dataset, caption file or image that cannot be used as it is."""
