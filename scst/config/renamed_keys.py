"""Translates recipe keys and values of earlier releases; renamed ones are read for one more release."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

from scst.data.visible import visible_lines
from scst.errors import RecipeError

RENAMED_KEYS = {"late_rollouts": "one_step_off_policy"}
"""Old key -> new key."""
RENAMED_VALUES: dict[str, dict[str, str]] = {"rollout_weights": {"whole": "unsharded"}}
"""Key -> {old value: new value}."""
REMOVED_KEYS = {"rollout_backend": "the training process samples all captions itself; delete the key"}
"""Removed key -> what to do."""


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the settings of one source (a file, or the flags) to the names of this release.

    Raises:
        RecipeError: on a removed key, or a key that is given under its old and its new name.
    """
    current: dict[str, Any] = {}
    for name, value in settings.items():
        if name in REMOVED_KEYS:
            raise RecipeError(f"{name}: removed from recipes: {REMOVED_KEYS[name]}")
        key = RENAMED_KEYS.get(name, name)
        if key in current:
            old = next(old for old, new in RENAMED_KEYS.items() if new == key)
            raise RecipeError(f"{key}: given twice, also by its old name {old}")
        if key != name:
            _warn(f"{name} is now called {key}; this release still reads the old name")
        if isinstance(value, str) and value in RENAMED_VALUES.get(key, {}):
            new = RENAMED_VALUES[key][value]
            _warn(f"{key}: {value} is now called {new}; this release still reads the old name")
            value = new
        current[key] = value
    return current


@functools.cache  # once, however many recipes a matrix reads
def _warn(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(visible_lines(f"warning: {message}"), file=sys.stderr)
